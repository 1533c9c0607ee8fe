"""Who is the service, and what may it do? A scene on a broker with logins, whose workers are the user `payments`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    ScramMechanism,
    UserScramCredentialDeletion,
)

from tests.chaos.scene import Scene
from tests.support.kafka_access import REQUEST_S
from tests.support.kafka_cluster import KafkaCluster
from tests.support.kafka_node import password_of
from tests.support.names import Names

USER = "payments"


def scene_of_payments(
    cluster: KafkaCluster, names: Names, protocol: str, directory: Path, *, login: Mapping[str, str] | None = None
) -> Scene:
    """Its user may do nothing yet. `login`: another way in than the user's password."""
    return Scene(cluster.access(), names, protocol, directory, login=cluster.security(USER) if login is None else login)


def allow(cluster: KafkaCluster, scene: Scene, *topics: str) -> list[AclBinding]:
    """Lets the user write and describe these topics, and read them."""
    return [cluster.permissions.allow(USER, operation, topic=topic) for topic in topics for operation in ("READ", "WRITE", "DESCRIBE")]


def allow_group(cluster: KafkaCluster, scene: Scene) -> AclBinding:
    """Lets the user be a member of the service's group."""
    return cluster.permissions.allow(USER, "READ", group=scene.group)


def allow_all(cluster: KafkaCluster, scene: Scene) -> None:
    """Lets the user do all that the service has to."""
    allow(cluster, scene, scene.orders, scene.notes, scene.dlq, scene.letters, scene.replays)
    allow_group(cluster, scene)


def change_password(cluster: KafkaCluster, password: str = "another-secret") -> None:
    """From now on the user gets in with `password` only. Connections stay open until they have to log in again."""
    cluster.permissions.set_password(USER, password)


def delete_user(cluster: KafkaCluster) -> None:
    """From now on nobody gets in as the user."""
    deletion = UserScramCredentialDeletion(USER, ScramMechanism.SCRAM_SHA_256)
    for deleted in cluster.access().admin.alter_user_scram_credentials([deletion], request_timeout=REQUEST_S).values():
        deleted.result(REQUEST_S * 2)


def restore_user(cluster: KafkaCluster) -> None:
    """The user and its password are as the cluster was made with."""
    cluster.permissions.set_password(USER, password_of(USER))
