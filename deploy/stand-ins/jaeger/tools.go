//go:build tools

// Package standins names what is built here, so that go.mod keeps it.
package standins

import _ "github.com/jaegertracing/jaeger/cmd/jaeger"
