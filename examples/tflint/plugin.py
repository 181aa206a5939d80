#!/usr/bin/env python3
"""A ruleset for tflint with one rule: names of notes are in lower case. tflint starts it; README.md shows how."""

import goplugin  # first: from here on only the handshake line reaches the stdout that the host reads

import logging
from collections import defaultdict

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import tflint_pb2 as pb
import tflint_pb2_grpc

_log = logging.getLogger("notes")  # the records reach tflint's log, TFLINT_LOG, with their level

# tflint's values, from plugin/internal/host2plugin/plugin.go of its SDK.
HANDSHAKE = goplugin.HandshakeConfig(
    protocol_versions=[11],
    magic_cookie_key="TFLINT_RULESET_PLUGIN",
    magic_cookie_value="5adSn1bX8nrDfgBqiAqqEkC6OE1h3iD8SqbMc5UUONx8x3xCF0KlPDsBRNDjoYDP",
)

RULE = pb.EmitIssue.Rule(name="notes_lower_case_name", enabled=True, severity=pb.EmitIssue.SEVERITY_WARNING)

# What the rule asks tflint for: the attribute `name` of all resources.
SCHEMA = pb.BodySchema(
    blocks=[
        pb.BodySchema.Block(
            type="resource",
            label_names=["type", "name"],
            body=pb.BodySchema(attributes=[pb.BodySchema.Attribute(name="name")]),
        )
    ]
)


class RuleSetServicer(tflint_pb2_grpc.RuleSetServicer):
    """tflint first asks a ruleset for its name, versions and rules. Then it lets it check each module."""

    def __init__(self, broker: goplugin.Broker) -> None:
        self.broker = broker
        self.config = pb.ApplyGlobalConfig.Config()

    def GetName(self, request: pb.GetName.Request, context: grpc.ServicerContext) -> pb.GetName.Response:
        """Return the name, as in `plugin "notes" {}`."""
        return pb.GetName.Response(name="notes")

    def GetVersion(self, request: pb.GetVersion.Request, context: grpc.ServicerContext) -> pb.GetVersion.Response:
        """Return the ruleset's version, for `tflint --version`."""
        return pb.GetVersion.Response(version="0.1.0")

    def GetSDKVersion(
        self, request: pb.GetSDKVersion.Request, context: grpc.ServicerContext
    ) -> pb.GetSDKVersion.Response:
        """Return the version of tflint's SDK that tflint.proto comes from. tflint checks whether it is compatible."""
        return pb.GetSDKVersion.Response(version="0.25.0")

    def GetVersionConstraint(
        self, request: pb.GetVersionConstraint.Request, context: grpc.ServicerContext
    ) -> pb.GetVersionConstraint.Response:
        """Return the versions of tflint that the ruleset works with."""
        return pb.GetVersionConstraint.Response(constraint=">= 0.46")

    def GetRuleNames(self, request: pb.GetRuleNames.Request, context: grpc.ServicerContext) -> pb.GetRuleNames.Response:
        """Return the names of all rules."""
        return pb.GetRuleNames.Response(names=[RULE.name])

    def GetConfigSchema(
        self, request: pb.GetConfigSchema.Request, context: grpc.ServicerContext
    ) -> pb.GetConfigSchema.Response:
        """Return the settings that the plugin block may have: none."""
        return pb.GetConfigSchema.Response(schema=pb.BodySchema())

    def ApplyGlobalConfig(
        self, request: pb.ApplyGlobalConfig.Request, context: grpc.ServicerContext
    ) -> pb.ApplyGlobalConfig.Response:
        """Keep the settings: which rules are enabled, and whether to fix."""
        self.config = request.config
        return pb.ApplyGlobalConfig.Response()

    def ApplyConfig(self, request: pb.ApplyConfig.Request, context: grpc.ServicerContext) -> pb.ApplyConfig.Response:
        """Do nothing: the plugin block has no settings."""
        return pb.ApplyConfig.Response()

    def Check(self, request: pb.Check.Request, context: grpc.ServicerContext) -> pb.Check.Response:
        """Check one module. tflint serves Runner for it, under an id of the broker."""
        if is_enabled(self.config):
            with self.broker.dial(request.runner) as channel:
                check(tflint_pb2_grpc.RunnerStub(channel), fix=self.config.fix)
        return pb.Check.Response()


def is_enabled(config: pb.ApplyGlobalConfig.Config) -> bool:
    """Whether the user wants the rule: --only overrides rule blocks, and they override disabled_by_default."""
    if config.only:
        return RULE.name in config.only
    if RULE.name in config.rules:
        return config.rules[RULE.name].enabled
    return not config.disabled_by_default


def check(runner: tflint_pb2_grpc.RunnerStub, *, fix: bool) -> None:
    """Report each name that is not in lower case, and fix it if tflint was called with --fix."""
    option = pb.GetModuleContent.Option(
        module_ctx=pb.MODULE_CTX_TYPE_SELF, hint=pb.GetModuleContent.Hint(resource_type="notes_note")
    )
    content = runner.GetModuleContent(pb.GetModuleContent.Request(schema=SCHEMA, option=option)).content
    in_root = not runner.GetModulePath(pb.GetModulePath.Request()).path  # tflint fixes only the root module
    changes = defaultdict(list)
    for block in content.blocks:
        if block.labels[0] != "notes_note" or "name" not in block.body.attributes:
            continue
        expression = block.body.attributes["name"].expression
        literal = expression.bytes.startswith(b'"') and b"${" not in expression.bytes  # a plain text
        if not literal or expression.bytes == expression.bytes.lower():
            continue
        message = f"{expression.bytes.decode()} should be in lower case"
        issue = pb.EmitIssue.Request(rule=RULE, message=message, range=expression.range, fixable=in_root)
        if runner.EmitIssue(issue).applied and fix and in_root:  # not applied: the user disabled the rule for this line
            changes[expression.range.filename].append(expression)
    if changes:
        _log.info("fixing", extra={"files": sorted(changes)})
        files = runner.GetFiles(pb.GetFiles.Request()).files
        fixed = {name: lower(files[name], expressions) for name, expressions in changes.items()}
        runner.ApplyChanges(pb.ApplyChanges.Request(changes=fixed))


def lower(source: bytes, expressions: list[pb.Expression]) -> bytes:
    """Return the file with these expressions in lower case."""
    result = bytearray(source)
    for expression in sorted(expressions, key=lambda one: one.range.start.byte, reverse=True):
        result[expression.range.start.byte : expression.range.end.byte] = expression.bytes.lower()
    return bytes(result)


def main() -> None:
    """The four steps of the guide."""
    plugin = goplugin.Plugin(HANDSHAKE, usage=__doc__)

    # 1. Implement the service: RuleSetServicer above. 2. Serve it.
    server = grpc.server(**plugin.server_arguments)
    tflint_pb2_grpc.add_RuleSetServicer_to_server(RuleSetServicer(plugin.broker), server)

    # 3. Add the gRPC health checking service.
    health_servicer = health.HealthServicer()
    health_servicer.set("plugin", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)

    # 4. Listen, and print the handshake line.
    print(plugin.listen(server), flush=True)
    plugin.wait()


if __name__ == "__main__":
    main()
