"""The hosts that `check` and `new` know by name. docs/hosts.md says where each host's source has these values."""

from typing import NamedTuple

from goplugin.handshake import HandshakeConfig


class Host(NamedTuple):
    """handshake: what the host offers. auto_mtls: whether it starts its plugins with AutoMTLS."""

    handshake: HandshakeConfig
    auto_mtls: bool


def _host(cookie: str, *versions: int, auto_mtls: bool = False) -> Host:
    key, _, value = cookie.partition("=")
    return Host(HandshakeConfig(versions, key, value), auto_mtls)


_TERRAFORM = "TF_PLUGIN_MAGIC_COOKIE=d602bf8f470bc67ca7faa0386276bbdd4330efaf76d1a219cb4d6991ca9872b2"
_VAULT = "VAULT_BACKEND_PLUGIN=6669da05-b1c8-4f49-97d9-c8e5bed98e20"
_DATABASE = "VAULT_DATABASE_PLUGIN=926a0820-aea2-be28-51d6-83cdf00e8edb"
_NOMAD = "NOMAD_PLUGIN_MAGIC_COOKIE=e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255"
_TFLINT = "TFLINT_RULESET_PLUGIN=5adSn1bX8nrDfgBqiAqqEkC6OE1h3iD8SqbMc5UUONx8x3xCF0KlPDsBRNDjoYDP"
_SPIRE = (  # types of plugins of SPIRE's server and agent; the cookie's key and value are both the type
    "BundlePublisher", "CredentialComposer", "KeyManager", "NodeAttestor", "Notifier", "UpstreamAuthority",
    "SVIDStore", "WorkloadAttestor",
)  # fmt: skip

HOSTS = {
    "terraform": _host(_TERRAFORM, 5, 6, auto_mtls=True),
    "opentofu": _host(_TERRAFORM, 5, 6, auto_mtls=True),
    "vault": _host(_VAULT, 5, auto_mtls=True),
    "openbao": _host(_VAULT, 5, auto_mtls=True),
    # 6 is for plugins that answer Vault's service PluginMultiplexing; the others declare 5 alone.
    "vault-database": _host(_DATABASE, 5, 6, auto_mtls=True),
    "openbao-database": _host(_DATABASE, 5, 6, auto_mtls=True),
    "nomad": _host(_NOMAD, 2),
    "tflint": _host(_TFLINT, 11),
    "grafana": _host("grafana_plugin_type=datasource", 2),
    "velero": _host("VELERO_PLUGIN=hello", 2),
    "steampipe": _host("MANTIX_PLUGIN_MAGIC_COOKIE=really-complex-permanent-string-value", 0),
    **{f"spire-{kind.lower()}": _host(f"{kind}={kind}", 1) for kind in _SPIRE},
}
