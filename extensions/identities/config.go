package identities

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/satchelbase/satchel/extensions/identities/apple"
)

// Config is read from SATCHEL_IDENTITIES_*. A provider works when PROVIDERS names it; its own settings say whose tokens it
// takes. Nothing of it ever comes from a request.
type Config struct {
	Providers    []string `env:"PROVIDERS" help:"providers whose tokens are exchanged: google, apple, clerk, auth0, firebase, supabase, microsoft, oidc"`
	Collections  []string `env:"COLLECTIONS" default:"users" help:"auth collections that tokens may be exchanged for; the first is the default"`
	EmailTrust   []string `env:"EMAIL_TRUST" help:"providers whose verified e-mail addresses are believed: google, apple, clerk, auth0, firebase, oidc"`
	LinkVerified []string `env:"LINK_VERIFIED" help:"providers in EMAIL_TRUST that sign in to an existing account with the same verified e-mail; without, that is 409"`

	GoogleAudiences []string `env:"GOOGLE_AUDIENCES" help:"client ids that Google's tokens are issued for (aud)"`
	GoogleAZP       []string `env:"GOOGLE_AZP" help:"client ids that may ask for them (azp), such as the Android app's; default GOOGLE_AUDIENCES"`

	AppleAudiences []string `env:"APPLE_AUDIENCES" help:"bundle ids and service ids that Apple's tokens are issued for"`

	AppleTeam  string `env:"APPLE_TEAM" help:"team id, with APPLE_KEY_ID and APPLE_KEY: deleting an account then ends the app's access at Apple, as its rules for apps want"`
	AppleKeyID string `env:"APPLE_KEY_ID" help:"id of the key"`
	AppleKey   string `env:"APPLE_KEY" secret:"true" help:"private key for Sign in with Apple, the text of the .p8 file"`

	ClerkIssuer    string   `env:"CLERK_ISSUER" help:"frontend API address, such as https://clerk.example.com"`
	ClerkAudiences []string `env:"CLERK_AUDIENCES" help:"audiences that the JWT template sets; tokens without one are refused"`
	ClerkAZP       []string `env:"CLERK_AZP" help:"origins of web apps that may bring tokens (azp)"`

	Auth0Issuer    string   `env:"AUTH0_ISSUER" help:"such as https://example.eu.auth0.com/, with the slash at the end"`
	Auth0Audiences []string `env:"AUTH0_AUDIENCES" help:"client ids of the applications"`

	FirebaseProject string `env:"FIREBASE_PROJECT" help:"project id"`

	SupabaseURL       string   `env:"SUPABASE_URL" help:"project address, such as https://example.supabase.co"`
	SupabaseAudiences []string `env:"SUPABASE_AUDIENCES" default:"authenticated" help:"audiences of the tokens"`

	MicrosoftTenant    string   `env:"MICROSOFT_TENANT" help:"directory (tenant) id, a UUID; names such as common are refused"`
	MicrosoftAudiences []string `env:"MICROSOFT_AUDIENCES" help:"application (client) ids"`

	OIDCIssuer     string   `env:"OIDC_ISSUER" help:"issuer of any other OpenID Connect provider, exactly as its tokens say it"`
	OIDCJWKS       string   `env:"OIDC_JWKS" help:"address of its keys; default from its discovery document"`
	OIDCAudiences  []string `env:"OIDC_AUDIENCES" help:"client ids"`
	OIDCAZP        []string `env:"OIDC_AZP" help:"client ids that may ask for tokens (azp); default OIDC_AUDIENCES"`
	OIDCAlgorithms []string `env:"OIDC_ALGORITHMS" default:"RS256,ES256,EdDSA" help:"signature algorithms, of RS256, RS384, RS512, PS256, ES256, ES384, EdDSA"`
	OIDCNonce      string   `env:"OIDC_NONCE" default:"optional" help:"optional, required, or sha256 (required, and the token holds its SHA-256 in hex)"`

	CAFile        string `env:"CA_FILE" help:"development only: a certificate authority in PEM to trust besides the system's, such as that of satchel dev idp"`
	AllowLoopback bool   `env:"ALLOW_LOOPBACK" help:"development only: let the keys of providers be on loopback"`
}

var (
	tenantPattern  = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	projectPattern = regexp.MustCompile(`^[a-z][a-z0-9-]{4,28}[a-z0-9]$`)
)

// Validate reports everything that cannot work, at once.
func (c Config) Validate() error {
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	on := func(name string) bool { return slices.Contains(c.Providers, name) }
	for i, name := range c.Providers {
		if !slices.Contains(names(), name) || slices.Contains(c.Providers[:i], name) {
			bad("PROVIDERS: %q is unknown or there twice", name)
		}
	}
	for _, name := range c.EmailTrust {
		switch {
		case !on(name):
			bad("EMAIL_TRUST: %q is not in PROVIDERS", name)
		case name == "microsoft":
			bad("EMAIL_TRUST: the address in Microsoft's tokens is whatever a tenant's admin typed, it cannot be trusted")
		case name == "supabase":
			bad("EMAIL_TRUST: Supabase's tokens do not say whether the address is verified, it cannot be trusted")
		}
	}
	for _, name := range c.LinkVerified {
		if !slices.Contains(c.EmailTrust, name) {
			bad("LINK_VERIFIED: %q is not in EMAIL_TRUST", name)
		}
	}
	if len(c.Collections) == 0 || slices.Contains(c.Collections, "_superusers") {
		bad("COLLECTIONS: must name auth collections, and not that of superusers")
	}
	for _, alg := range c.OIDCAlgorithms {
		if !slices.Contains([]string{"RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"}, alg) {
			bad("OIDC_ALGORITHMS: %q is not allowed", alg)
		}
	}
	if _, ok := nonceModes()[c.OIDCNonce]; !ok {
		bad("OIDC_NONCE: must be optional, required or sha256")
	}
	return errors.Join(append(problems, c.validateProviders(on)...)...)
}

// validateProviders checks what each provider in use needs.
func (c Config) validateProviders(on func(string) bool) []error {
	var problems []error
	need := func(provider string, ok bool, text string) {
		if on(provider) && !ok {
			problems = append(problems, errors.New(text))
		}
	}
	need("google", len(c.GoogleAudiences) > 0, "GOOGLE_AUDIENCES: is needed")
	need("apple", len(c.AppleAudiences) > 0, "APPLE_AUDIENCES: is needed")
	if on("apple") && c.AppleTeam+c.AppleKeyID+c.AppleKey != "" {
		need("apple", c.AppleTeam != "" && c.AppleKeyID != "", "APPLE_TEAM: APPLE_TEAM, APPLE_KEY_ID and APPLE_KEY belong together")
		if _, err := apple.ParseKey(c.AppleKey); err != nil {
			problems = append(problems, fmt.Errorf("APPLE_KEY: %w", err))
		}
	}
	need("clerk", secure(c.ClerkIssuer), "CLERK_ISSUER: must be an https address")
	need("clerk", len(c.ClerkAudiences) > 0, "CLERK_AUDIENCES: is needed")
	need("auth0", secure(c.Auth0Issuer) && strings.HasSuffix(c.Auth0Issuer, "/"), "AUTH0_ISSUER: must be an https address with a slash at the end")
	need("auth0", len(c.Auth0Audiences) > 0, "AUTH0_AUDIENCES: is needed")
	need("firebase", projectPattern.MatchString(c.FirebaseProject), "FIREBASE_PROJECT: must be a project id")
	need("supabase", secure(c.SupabaseURL) && !strings.HasSuffix(c.SupabaseURL, "/"), "SUPABASE_URL: must be an https address without a slash at the end")
	need("supabase", len(c.SupabaseAudiences) > 0, "SUPABASE_AUDIENCES: is needed")
	need("microsoft", tenantPattern.MatchString(c.MicrosoftTenant), "MICROSOFT_TENANT: must be a tenant's UUID in lower case")
	need("microsoft", len(c.MicrosoftAudiences) > 0, "MICROSOFT_AUDIENCES: is needed")
	need("oidc", secure(c.OIDCIssuer), "OIDC_ISSUER: must be an https address")
	need("oidc", c.OIDCJWKS == "" || secure(c.OIDCJWKS), "OIDC_JWKS: must be an https address")
	need("oidc", len(c.OIDCAudiences) > 0, "OIDC_AUDIENCES: is needed")
	need("oidc", len(c.OIDCAlgorithms) > 0, "OIDC_ALGORITHMS: is needed")
	return problems
}

func secure(address string) bool {
	u, err := url.Parse(address)
	return err == nil && u.Scheme == "https" && u.Hostname() != "" && u.User == nil && u.RawQuery == "" && u.Fragment == ""
}
