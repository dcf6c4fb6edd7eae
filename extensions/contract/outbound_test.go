package contract_test

import (
	"fmt"
	"go/ast"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// ways are what reaches other hosts past the guarded client: names by the package that has them. A pointer to a client is
// how the guarded one is passed on, and no finding.
func ways() map[string][]string {
	return map[string][]string{
		"net": {
			"Dial", "DialTimeout", "DialTCP", "DialUDP", "DialIP", "DialUnix", "Dialer", "LookupHost", "LookupIP", "LookupTXT", "LookupMX", "LookupSRV", "LookupCNAME",
			"LookupAddr", "LookupNS", "Resolver", "DefaultResolver",
		},
		"net/http":                     {"Client", "Transport", "DefaultClient", "DefaultTransport", "Get", "Head", "Post", "PostForm"},
		"net/smtp":                     {"Dial", "NewClient", "SendMail"},
		"net/rpc":                      {"Dial", "DialHTTP", "DialHTTPPath"},
		"net/http/httputil":            {"ReverseProxy", "NewSingleHostReverseProxy", "NewClientConn", "NewProxyClientConn"},
		"crypto/tls":                   {"Dial", "DialWithDialer", "Dialer"},
		"golang.org/x/net/http2":       {"Transport", "ClientConn"},
		"golang.org/x/net/proxy":       {"Dial", "FromEnvironment", "SOCKS5"},
		"github.com/coder/websocket":   {"Dial"},
		"github.com/gorilla/websocket": {"Dialer", "DefaultDialer"},
		"google.golang.org/grpc":       {"Dial", "DialContext", "NewClient"},

		// Those of PocketBase, which are for addresses that superusers set.
		"github.com/pocketbase/pocketbase/tools/mailer":     {"SMTPClient"},
		"github.com/pocketbase/pocketbase/tools/filesystem": {"NewS3", "NewFileFromURL"},
	}
}

// unguarded are the packages that may, and why.
func unguarded() map[string]string {
	return map[string]string{
		"extensions/internal/outbound": "it is the guarded client",
		"extensions/internal/apptest":  "tests call their own server on loopback",
		"bench":                        "the benchmark starts Postgres on loopback and waits for it",
		"bench/internal/load":          "the benchmark calls the server that it has started on loopback",
	}
}

// unguardedCalls finds what makes a client of its own.
func unguardedCalls(t *testing.T, tr tree, allowed map[string]string) (findings []string, used map[string]bool) {
	t.Helper()
	used = map[string]bool{}
	for _, p := range tr.packages {
		for _, f := range parse(t, tr.root, p, p.source()) {
			for _, found := range unguardedIn(f) {
				if _, ok := allowed[p.path()]; ok {
					used[p.path()] = true
					continue
				}
				findings = append(findings, found+": outside calls go through extensions/internal/outbound")
			}
		}
	}
	return findings, used
}

func unguardedIn(f file) (findings []string) {
	names := map[string][]string{} // what is looked for, by the name of the package in this file
	for _, spec := range f.ast.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil || ways()[imported] == nil {
			continue
		}
		local := path.Base(imported)
		if spec.Name != nil {
			local = spec.Name.Name
		}
		names[local] = ways()[imported]
		if local == "." {
			findings = append(findings, fmt.Sprintf("%s:%d hides the names of %s", f.name, f.at(spec), imported))
		}
	}
	if len(names) == 0 {
		return findings
	}
	pointers := map[*ast.SelectorExpr]bool{}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		if star, ok := n.(*ast.StarExpr); ok {
			if s, ok := star.X.(*ast.SelectorExpr); ok {
				pointers[s] = true
			}
		}
		s, ok := n.(*ast.SelectorExpr)
		if !ok || pointers[s] {
			return true
		}
		if from, ok := s.X.(*ast.Ident); ok && slices.Contains(names[from.Name], s.Sel.Name) {
			findings = append(findings, fmt.Sprintf("%s:%d uses %s.%s", f.name, f.at(s), from.Name, s.Sel.Name))
		}
		return true
	})
	return findings
}

// Every call to another host passes the guarded client, or is on the list with its reason.
func TestOutsideCallsAreGuarded(t *testing.T) {
	findings, used := unguardedCalls(t, load(t, here(t)), unguarded())
	none(t, findings)
	for _, name := range slices.Sorted(maps.Keys(unguarded())) {
		if !used[name] {
			t.Errorf("%s is on the list and makes no call of its own", name)
		}
	}
}

func TestOutsideCallsAreGuardedCanFail(t *testing.T) {
	text := func(lines ...string) string { return strings.Join(lines, "\n") + "\n" }
	root := plant(t, map[string]string{
		"extensions/a/a.go":      text("package a", `import "net/http"`, "", "func F(c *http.Client) error {", `_, err := c.Get("https://example.com")`, "return err", "}"),
		"extensions/a/b.go":      text("package a", `import "net/http"`, "", "var c = &http.Client{}", "var d http.Client", "var e = new(http.Transport)", `var f, _ = http.Get("x")`),
		"extensions/b/b.go":      text("package b", `import web "net/http"`, `import "net"`, "", "var c = web.DefaultClient", `var d, _ = net.Dial("tcp", "x")`, `var l, _ = net.Listen("tcp", "x")`),
		"extensions/c/c.go":      text("package c", `import . "net/http"`, "", "var c = DefaultClient"),
		"extensions/d/d.go":      text("package d", `import "crypto/tls"`, "", `var c, _ = tls.Dial("tcp", "x", nil)`, "var e tls.Config"),
		"extensions/d/d_test.go": text("package d", `import "net/http"`, "", "var f = http.DefaultClient"),
		"extensions/e/e.go":      text("package e", `import "net/http"`, "", "var c = http.DefaultClient"),
	})
	findings, used := unguardedCalls(t, load(t, root), map[string]string{"extensions/e": "a reason", "extensions/none": "another"})
	exactly(t, findings, "a/b.go:4 uses http.Client", "a/b.go:5 uses http.Client", "a/b.go:6 uses http.Transport", "a/b.go:7 uses http.Get",
		"b/b.go:5 uses web.DefaultClient", "b/b.go:6 uses net.Dial", "c/c.go:2 hides the names of net/http", "d/d.go:4 uses tls.Dial")
	if !used["extensions/e"] || used["extensions/none"] {
		t.Errorf("used: %v", used)
	}
}
