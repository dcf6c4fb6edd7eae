package e2e

import (
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
)

// lenient lists the routes that write and do not refuse unknown members of a JSON body, with the reason.
func lenient() map[string]string {
	const (
		form  = "its body is a form, as the RFC says, in which other members are ignored"
		stock = "its body is what a stock client makes, which would send the same again and again and nothing else"
	)
	return map[string]string{
		"POST /api/v1/sync/watermelon": stock, "POST /api/v1/sync/rxdb/{collection}": stock,
		"POST /api/v1/auth/introspect": form, "POST /api/v1/auth/revoke": form, "POST /api/v1/auth/token": form,
	}
}

// TestStrictBodies sends every route of ours that writes a body with a member that does not exist. A typing mistake, or a
// field that an older server does not know yet, must not be dropped in silence. A DELETE whose body means nothing (RFC 9110 section 9.3.5) finds nothing here.
func TestStrictBodies(t *testing.T) {
	t.Parallel()
	reference, err := os.ReadFile("../docs/reference.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?m)^\\| `(POST|PUT|PATCH|DELETE) (/api/v1/[^`]+)` \\|$").FindAllStringSubmatch(string(reference), -1)
	if len(found) < 20 {
		t.Fatalf("the reference names only %d routes", len(found))
	}
	s := start(t, relaxed("SATCHEL_PUBLIC_URL=https://app.example.test")...)
	admin := s.superuser(t)
	s.user(t, "strict@example.com")
	unused := lenient()
	for _, m := range found {
		route := m[1] + " " + m[2]
		_, excused := unused[route]
		delete(unused, route)
		r := request{
			Method: m[1], Path: regexp.MustCompile(`\{[^}]+\}`).ReplaceAllString(m[2], "nothing"),
			Header: map[string]string{"Idempotency-Key": "strict-bodies-0123456789abcdef"}, JSON: map[string]any{"notAMember": 1},
		}
		if strings.Contains(r.Path, "/admin/") || strings.HasSuffix(r.Path, "/impersonate") {
			r.Token = admin
		} else {
			r.Token = s.signIn(t, "users", "strict@example.com", "a long password")
		}
		got := s.do(t, r)
		if strings.Contains(string(got.Body), `"code":"operations.caller_refused"`) {
			r.Token = admin
			got = s.do(t, r)
		}
		strict := got.Status == http.StatusBadRequest && strings.Contains(string(got.Body), `"field":"notAMember","code":"api.field_unknown"`)
		nothing := m[1] == http.MethodDelete && got.Status == http.StatusNotFound
		if strict == excused && !nothing {
			t.Errorf("%s (excused: %v): %d %s", route, excused, got.Status, got.Body)
		}
	}
	for route := range unused {
		t.Errorf("there is no route %s", route)
	}
}
