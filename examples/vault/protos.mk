# Vault's services are in its SDK, whose licence is MPL-2.0; so they are fetched, not copied into this project.
sdk := github.com/hashicorp/vault/sdk@v0.20.0
files := plugin/pb/backend.proto logical/event.proto logical/identity.proto logical/plugin.proto logical/version.proto \
	helper/pluginutil/multiplexing.proto

protos: $(addprefix sdk/,$(files))

sdk/%.proto:
	@command -v go >/dev/null || { \
	echo "$@ is fetched by Go, and there is none: install it (https://go.dev/dl), or put there what is at" \
	"https://github.com/hashicorp/vault/blob/$(subst github.com/hashicorp/vault/,,$(subst @,/,$(sdk)))/$@" >&2; exit 1; }
	@mkdir -p $(@D)
	install -m 644 "$$(go mod download -json $(sdk) | sed -n 's/.*"Dir": "\(.*\)",$$/\1/p')/$*.proto" $@
