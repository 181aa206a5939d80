# tflint's service is in its SDK, whose licence is MPL-2.0; so it is fetched, not copied into this project.
sdk := github.com/terraform-linters/tflint-plugin-sdk@v0.25.0

protos: tflint.proto

tflint.proto:
	@command -v go >/dev/null || { \
	echo "tflint.proto is fetched by Go, and there is none: install it (https://go.dev/dl), or put here what is at" \
	"https://$(subst @,/blob/,$(sdk))/plugin/internal/proto/tflint.proto" >&2; exit 1; }
	install -m 644 "$$(go mod download -json $(sdk) | sed -n 's/.*"Dir": "\(.*\)",$$/\1/p')/plugin/internal/proto/$@" $@
