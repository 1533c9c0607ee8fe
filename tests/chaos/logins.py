"""Who is the service, and what may it do? A scene on a broker with logins, whose workers are the user `payments`."""

from __future__ import annotations

from pathlib import Path

from confluent_kafka.admin import AclBinding  # type: ignore[attr-defined]

from tests.chaos.scene import Scene
from tests.support.kafka_cluster import KafkaCluster
from tests.support.names import Names

USER = "payments"


def scene_of_payments(cluster: KafkaCluster, names: Names, protocol: str, directory: Path) -> Scene:
    """Its user may do nothing yet."""
    return Scene(cluster.access(), names, protocol, directory, login=cluster.security(USER))


def allow(cluster: KafkaCluster, scene: Scene, *topics: str) -> list[AclBinding]:
    """Lets the user write and describe these topics, and read them."""
    return [cluster.permissions.allow(USER, operation, topic=topic) for topic in topics for operation in ("READ", "WRITE", "DESCRIBE")]


def allow_group(cluster: KafkaCluster, scene: Scene) -> AclBinding:
    """Lets the user be a member of the service's group."""
    return cluster.permissions.allow(USER, "READ", group=scene.group)
