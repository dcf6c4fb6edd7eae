package passkeys

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"
)

// Config is read from SATCHEL_PASSKEYS_*.
type Config struct {
	RPID        string   `env:"RP_ID" default:"" help:"domain that the passkeys belong to, for good; empty is the host of PUBLIC_URL"`
	Origins     []string `env:"ORIGINS" default:"" help:"web origins and android:apk-key-hash:... that may use passkeys; empty is that of PUBLIC_URL"`
	AppleApps   []string `env:"APPLE_APPS" default:"" help:"apps of Apple's systems that may use passkeys, as TEAMID.bundle.id"`
	AndroidApps []string `env:"ANDROID_APPS" default:"" help:"Android apps that may use passkeys, as package=SHA-256 of the signing certificate, AA:BB:..."`
}

var (
	appleApp    = regexp.MustCompile(`^[A-Z0-9]{10}\.[A-Za-z0-9.-]+$`)
	androidName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)+$`)
)

// androidApp is one app and one of its signing certificates.
type androidApp struct {
	name        string
	fingerprint []byte // SHA-256
}

func parseAndroidApp(text string) (androidApp, error) {
	name, fingerprint, _ := strings.Cut(text, "=")
	raw, err := hex.DecodeString(strings.ReplaceAll(fingerprint, ":", ""))
	if err != nil || len(raw) != 32 || !androidName.MatchString(name) {
		return androidApp{}, fmt.Errorf("%q must be a package name, =, and 32 bytes in hexadecimal", text)
	}
	return androidApp{name, raw}, nil
}

// origin is what Android calls the origin of the app.
func (a androidApp) origin() string {
	return protocol.OpaqueOriginPrefixAndroidAPKKeyHash + base64.RawURLEncoding.EncodeToString(a.fingerprint)
}

// text is the fingerprint as Google's tools print it.
func (a androidApp) text() string {
	parts := make([]string, len(a.fingerprint))
	for i, b := range a.fingerprint {
		parts[i] = fmt.Sprintf("%02X", b)
	}
	return strings.Join(parts, ":")
}

func (c Config) androidApps() ([]androidApp, error) {
	apps := make([]androidApp, 0, len(c.AndroidApps))
	for _, text := range c.AndroidApps {
		app, err := parseAndroidApp(text)
		if err != nil {
			return nil, err
		}
		apps = append(apps, app)
	}
	return apps, nil
}

// Validate reports what cannot work whatever the public address is.
func (c Config) Validate() error {
	var problems []error
	if c.RPID != "" {
		if err := protocol.ValidateRPID(c.RPID); err != nil {
			problems = append(problems, fmt.Errorf("RP_ID: must be a domain: %w", err))
		}
	}
	for _, origin := range c.Origins {
		if err := checkOrigin(origin); err != nil {
			problems = append(problems, fmt.Errorf("ORIGINS: %w", err))
		}
	}
	for _, app := range c.AppleApps {
		if !appleApp.MatchString(app) {
			problems = append(problems, fmt.Errorf("APPLE_APPS: %q must be the 10 characters of a team, a dot and a bundle id", app))
		}
	}
	if _, err := c.androidApps(); err != nil {
		problems = append(problems, fmt.Errorf("ANDROID_APPS: %w", err))
	}
	return errors.Join(problems...)
}

// checkOrigin takes what a browser or Android sends as an origin. Plain http is for localhost (a secure context).
func checkOrigin(origin string) error {
	if protocol.IsKnownOpaqueOrigin(origin) {
		return nil
	}
	u, err := url.Parse(origin)
	switch {
	case err != nil || u.Host == "" || u.Scheme+"://"+u.Host != origin:
		return fmt.Errorf("%q is neither the origin of a website, as https://example.com, nor that of an app", origin)
	case u.Scheme == "https", u.Scheme == "http" && isLocalhost(u.Hostname()):
		return nil
	}
	return fmt.Errorf("%q must be https; only localhost may be http", origin)
}

func isLocalhost(host string) bool {
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// relyingParty is the party that passkeys are made for. The error says why there is none.
func (c Config) relyingParty(publicURL string) (*webauthn.WebAuthn, error) {
	id, origins := c.RPID, c.Origins
	if id == "" || len(origins) == 0 {
		if publicURL == "" {
			return nil, errors.New("passkeys need the public address of the server")
		}
		u, err := url.Parse(publicURL)
		if err != nil {
			return nil, fmt.Errorf("read the public address: %w", err)
		}
		if id == "" {
			id = u.Hostname()
		}
		if len(origins) == 0 {
			origin := u.Scheme + "://" + u.Host
			if err := checkOrigin(origin); err != nil {
				return nil, err
			}
			origins = []string{origin}
		}
	}
	if err := protocol.ValidateRPID(id); err != nil {
		return nil, fmt.Errorf("%q cannot own passkeys: %w", id, err)
	}
	apps, err := c.androidApps()
	if err != nil {
		return nil, err
	}
	var web, native []string
	for _, origin := range origins {
		if protocol.IsOpaqueOrigin(origin) {
			native = append(native, origin)
			continue
		}
		// Authenticators bind a passkey to the domain; an origin elsewhere could never use one.
		if u, err := url.Parse(origin); err != nil || (u.Hostname() != id && !strings.HasSuffix(u.Hostname(), "."+id)) {
			return nil, fmt.Errorf("the origin %s is not in the domain %s", origin, id)
		}
		web = append(web, origin)
	}
	for _, app := range apps {
		native = append(native, app.origin())
	}
	if len(web) == 0 {
		web = []string{"https://" + id} // native apps of Apple's systems have it
	}
	rp, err := webauthn.New(&webauthn.Config{
		RPID: id, RPDisplayName: id, RPOrigins: web, RPOpaqueOrigins: native,
		AttestationPreference: protocol.PreferNoAttestation,
		AuthenticatorSelection: protocol.AuthenticatorSelection{
			ResidentKey: protocol.ResidentKeyRequirementRequired, RequireResidentKey: protocol.ResidentKeyRequired(),
			UserVerification: protocol.VerificationRequired,
		},
		// Password managers send outputs of extensions that nobody asked for; none is used.
		ExtensionsUnsolicitedOutputPolicy: protocol.UnsolicitedOutputPolicyIgnore,
		Timeouts: webauthn.TimeoutsConfig{
			Login:        webauthn.TimeoutConfig{Enforce: true, Timeout: challengeLifetime},
			Registration: webauthn.TimeoutConfig{Enforce: true, Timeout: challengeLifetime},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("set up passkeys: %w", err)
	}
	return rp, nil
}
