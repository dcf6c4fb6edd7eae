package identities

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/golang-jwt/jwt/v5"

	"github.com/satchelbase/satchel/extensions/internal/jwks"
)

// nonceMode says how the nonce in a token stands to the one that the app made, and whether it must be there.
type nonceMode struct {
	required, raw, hashed bool
}

// nonceModes are those that can be chosen for the provider oidc.
func nonceModes() map[string]nonceMode {
	return map[string]nonceMode{"optional": {raw: true}, "required": {required: true, raw: true}, "sha256": {required: true, hashed: true}}
}

// matches compares in constant time. Apple's apps put the SHA-256 of the nonce into the request, in hex; with Google's
// libraries it is the app's choice.
func (m nonceMode) matches(claim, nonce string) bool {
	sum := sha256.Sum256([]byte(nonce))
	raw := subtle.ConstantTimeCompare([]byte(claim), []byte(nonce))
	hashed := subtle.ConstantTimeCompare([]byte(claim), []byte(hex.EncodeToString(sum[:])))
	return (m.raw && raw == 1) || (m.hashed && hashed == 1)
}

// provider is one issuer whose tokens are taken. All of it comes from the settings.
type provider struct {
	name         string
	issuers      []string // the first is the one that identities are kept under
	keys         jwks.Source
	audiences    []string
	azp          []string
	algorithms   []string
	nonce        nonceMode
	trustEmail   bool
	linkVerified bool

	// subject, when set, takes the lasting id of the person from other claims than sub.
	subject func(jwt.MapClaims) string

	// refuse, when set, names what else speaks against the claims; empty is nothing.
	refuse func(jwt.MapClaims) string

	// anonymous, when set, reports a sign-in that names nobody.
	anonymous func(jwt.MapClaims) bool

	// ownsEmail, when set, narrows email_verified to addresses that the provider itself gives out.
	ownsEmail func(jwt.MapClaims) bool
}

// names are the providers that the settings can turn on.
func names() []string {
	return []string{"google", "apple", "clerk", "auth0", "firebase", "supabase", "microsoft", "oidc"}
}

// providers makes those that are turned on. c must be valid.
func (c Config) providers() []*provider {
	presets := map[string]func() *provider{
		"google": c.google, "apple": c.apple, "clerk": c.clerk, "auth0": c.auth0,
		"firebase": c.firebase, "supabase": c.supabase, "microsoft": c.microsoft, "oidc": c.oidc,
	}
	list := make([]*provider, 0, len(c.Providers))
	for _, name := range c.Providers {
		p := presets[name]()
		p.name = name
		p.trustEmail = slices.Contains(c.EmailTrust, name)
		p.linkVerified = slices.Contains(c.LinkVerified, name)
		if len(p.azp) == 0 {
			p.azp = p.audiences
		}
		list = append(list, p)
	}
	return list
}

// google: an address counts as verified only where Google is its mail provider, because others may have changed hands
// since they were checked.
func (c Config) google() *provider {
	return &provider{
		issuers:   []string{"https://accounts.google.com", "accounts.google.com"},
		keys:      jwks.Source{URL: "https://www.googleapis.com/oauth2/v3/certs"},
		audiences: c.GoogleAudiences, azp: c.GoogleAZP, algorithms: []string{"RS256"},
		nonce: nonceMode{required: true, raw: true, hashed: true},
		ownsEmail: func(claims jwt.MapClaims) bool {
			return text(claims, "hd") != "" || strings.HasSuffix(strings.ToLower(text(claims, "email")), "@gmail.com")
		},
	}
}

func (c Config) apple() *provider {
	return &provider{
		issuers:   []string{"https://appleid.apple.com"},
		keys:      jwks.Source{URL: "https://appleid.apple.com/auth/keys"},
		audiences: c.AppleAudiences, algorithms: []string{"RS256"},
		nonce: nonceMode{required: true, hashed: true},
	}
}

// clerk: its session tokens name no audience, so a token for another app of the same instance would pass; a template
// that sets one is required.
func (c Config) clerk() *provider {
	return &provider{
		issuers:   []string{c.ClerkIssuer},
		keys:      jwks.Source{URL: strings.TrimSuffix(c.ClerkIssuer, "/") + "/.well-known/jwks.json"},
		audiences: c.ClerkAudiences, azp: c.ClerkAZP, algorithms: []string{"RS256"},
		nonce: nonceMode{raw: true},
	}
}

// auth0: ID tokens only. Access tokens carry a scope.
func (c Config) auth0() *provider {
	return &provider{
		issuers:   []string{c.Auth0Issuer},
		keys:      jwks.Source{URL: c.Auth0Issuer + ".well-known/jwks.json"},
		audiences: c.Auth0Audiences, algorithms: []string{"RS256"},
		nonce: nonceMode{raw: true},
		refuse: func(claims jwt.MapClaims) string {
			if claims["scope"] != nil || claims["gty"] != nil {
				return "it is an access token"
			}
			return ""
		},
	}
}

func (c Config) firebase() *provider {
	return &provider{
		issuers:   []string{"https://securetoken.google.com/" + c.FirebaseProject},
		keys:      jwks.Source{URL: "https://www.googleapis.com/service_accounts/v1/jwk/securetoken@system.gserviceaccount.com"},
		audiences: []string{c.FirebaseProject}, algorithms: []string{"RS256"},
		nonce: nonceMode{raw: true},
		anonymous: func(claims jwt.MapClaims) bool {
			details, _ := claims["firebase"].(map[string]any)
			return details["sign_in_provider"] == "anonymous"
		},
	}
}

func (c Config) supabase() *provider {
	issuer := c.SupabaseURL + "/auth/v1"
	return &provider{
		issuers:   []string{issuer},
		keys:      jwks.Source{URL: issuer + "/.well-known/jwks.json"},
		audiences: c.SupabaseAudiences, algorithms: []string{"ES256", "RS256", "EdDSA"},
		nonce:     nonceMode{raw: true},
		anonymous: func(claims jwt.MapClaims) bool { return claims["is_anonymous"] == true },
	}
}

// microsoft: sub differs from app to app and email is not verified, so a person is tenant and object id.
func (c Config) microsoft() *provider {
	base := "https://login.microsoftonline.com/" + c.MicrosoftTenant
	return &provider{
		issuers:   []string{base + "/v2.0"},
		keys:      jwks.Source{URL: base + "/discovery/v2.0/keys"},
		audiences: c.MicrosoftAudiences, algorithms: []string{"RS256"},
		nonce: nonceMode{raw: true},
		subject: func(claims jwt.MapClaims) string {
			tenant, object := text(claims, "tid"), text(claims, "oid")
			if tenant != c.MicrosoftTenant || !tenantPattern.MatchString(object) {
				return ""
			}
			return tenant + "." + object
		},
	}
}

func (c Config) oidc() *provider {
	return &provider{
		issuers:   []string{c.OIDCIssuer},
		keys:      jwks.Source{URL: c.OIDCJWKS, Issuer: c.OIDCIssuer},
		audiences: c.OIDCAudiences, azp: c.OIDCAZP, algorithms: c.OIDCAlgorithms,
		nonce: nonceModes()[c.OIDCNonce],
	}
}

// text is a claim that is a string, else empty.
func text(claims jwt.MapClaims, name string) string {
	s, _ := claims[name].(string)
	return s
}
