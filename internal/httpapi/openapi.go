package httpapi

import _ "embed"

// OpenAPI describes the webhook as an OpenAPI 3.1 document, for those who write senders.
//
//go:embed openapi.yaml
var OpenAPI []byte
