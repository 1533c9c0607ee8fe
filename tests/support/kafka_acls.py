"""Who may do what? ACLs and passwords of a cluster with logins, set and taken back while it runs."""

from __future__ import annotations

from typing import Any

from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from tests.support.kafka_access import REQUEST_S, KafkaAccess
from tests.support.waiting import wait_for

KNOWN_DEADLINE_S = 30.0
SCRAM_ITERATIONS = 4096


class Permissions:
    """The ACLs of a cluster, changed by its admin. Every call returns when the brokers know."""

    def __init__(self, access: KafkaAccess) -> None:
        self._admin: AdminClient = access.admin

    def allow(
        self, user: str, operation: str, *, topic: str = "", group: str = "", transactional_id: str = "", prefixed: bool = False
    ) -> AclBinding:
        """Lets `user` do `operation` (``READ``, ``WRITE``, ``DESCRIBE``, ...) on a topic, a group or a transactional id, or on the
        cluster when none is named. Returns the ACL, for `disallow`."""
        resource = (
            ResourceType.TOPIC
            if topic
            else ResourceType.GROUP
            if group
            else ResourceType.TRANSACTIONAL_ID
            if transactional_id
            else ResourceType.BROKER
        )
        pattern = ResourcePatternType.PREFIXED if prefixed else ResourcePatternType.LITERAL
        principal = f"User:{user}"
        name = topic or group or transactional_id or "kafka-cluster"
        acl = AclBinding(resource, name, pattern, principal, "*", AclOperation[operation], AclPermissionType.ALLOW)
        for made in self._admin.create_acls([acl], request_timeout=REQUEST_S).values():
            made.result(REQUEST_S * 2)
        wait_for(lambda: acl in self.all(), f"{acl} is known", deadline_s=KNOWN_DEADLINE_S)
        return acl

    def disallow(self, acl: AclBinding) -> None:
        """Takes an ACL back."""
        exactly = AclBindingFilter(
            acl.restype, acl.name, acl.resource_pattern_type, acl.principal, acl.host, acl.operation, acl.permission_type
        )
        for deleted in self._admin.delete_acls([exactly], request_timeout=REQUEST_S).values():
            deleted.result(REQUEST_S * 2)
        wait_for(lambda: acl not in self.all(), f"{acl} is forgotten", deadline_s=KNOWN_DEADLINE_S)

    def all(self) -> list[AclBinding]:
        """All ACLs there are."""
        # None means "any", which the stubs don't know.
        any_text: Any = None
        anything = AclBindingFilter(
            ResourceType.ANY, any_text, ResourcePatternType.ANY, any_text, any_text, AclOperation.ANY, AclPermissionType.ANY
        )
        return list(self._admin.describe_acls(anything, request_timeout=REQUEST_S).result(REQUEST_S * 2))

    def set_password(self, user: str, password: str) -> None:
        """Makes a user, or changes the password of one; connections that are open stay open."""
        scram = UserScramCredentialUpsertion(user, ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, SCRAM_ITERATIONS), password.encode())
        for changed in self._admin.alter_user_scram_credentials([scram], request_timeout=REQUEST_S).values():
            changed.result(REQUEST_S * 2)
