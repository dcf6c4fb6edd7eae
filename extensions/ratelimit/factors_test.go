package ratelimit

import (
	"net/http"
	"testing"
)

// Second factors and passkeys have the quotas of sign-ins; options that a page asks for whenever it opens do not.
func TestRoutesOfFactors(t *testing.T) {
	for path, want := range map[string]route{
		"/api/v1/auth/totp/verify":               {class: signIn, account: "mfaId"},
		"/api/v1/auth/totp/confirm":              {class: signIn},
		"/api/v1/auth/passkeys":                  {class: signIn},
		"/api/v1/auth/passkeys/sign-in":          {class: signIn},
		"/api/v1/auth/passkeys/options/sign-in":  {class: refresh},
		"/api/v1/auth/passkeys/options/register": {class: general},
		"/api/v1/auth/totp":                      {class: general},
	} {
		want.path = path
		if got := routeOf(&http.Request{Method: http.MethodPost, Pattern: "POST " + path}); got != want {
			t.Errorf("%s: %+v, want %+v", path, got, want)
		}
	}
}
