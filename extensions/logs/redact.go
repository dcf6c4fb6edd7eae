package logs

import (
	"net/url"
	"regexp"
	"strings"
)

// redacted stands for a value that must not be logged.
const redacted = "REDACTED"

// maxUnescape bounds how often a value is unescaped in search of secrets: an address inside an address inside an
// address is the deepest nesting that login redirects produce.
const maxUnescape = 3

var (
	// jwtPattern matches signed tokens by their shape; "eyJ" is how every JSON object starts in base64.
	jwtPattern = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]*`)

	// refreshPattern matches refresh tokens, keyPattern API keys, credentialPattern the values of Authorization headers.
	refreshPattern    = regexp.MustCompile(`\brt1\.[A-Za-z0-9._-]+`)
	keyPattern        = regexp.MustCompile(`\bsk_[a-z0-9]{15}_[A-Za-z0-9_-]+`)
	credentialPattern = regexp.MustCompile(`(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._~-]{8,}`)

	// userinfoPattern matches the credentials in an address: https://user:password@host.
	userinfoPattern = regexp.MustCompile(`(://)[^/\s?#@]+@`)

	// assignPattern matches a secret's name and its value in addresses, filters, JSON and printed maps: token=x,
	// password ~ 'x', "secret":"x", map[token:x]. A colon before a space is prose: "password: cannot be blank".
	assignPattern = regexp.MustCompile(`(?i)([a-z0-9_.\[\]-]*(?:` + secretWords + `)[a-z0-9_.\[\]-]*)` +
		`(["']\s*:\s*|:|\s*\??!?[=~]{1,2}\s*)("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s&;,"'<>}\]#]+)`)

	// queryPattern matches parameters that are secrets in an address, but ordinary words elsewhere.
	queryPattern = regexp.MustCompile(`(?i)([?&](?:` + secretParameters + `)=)[^\s&;"'<>#]+`)

	parameterPattern = regexp.MustCompile(`(?i)^(?:` + secretParameters + `)$`)
)

const (
	// secretWords make every name that contains them the name of a secret.
	secretWords = `token|password|passwd|secret|apikey|api_key|api-key|authorization|signature|credential`

	// secretParameters are the names of secrets in queries, above all those of OAuth2, OpenID Connect and S3.
	secretParameters = `code|code_?verifier|state|nonce|otp|otp_?id|mfa_?id|pin|sig|jwt|assertion|key` //nolint:gosec // names, not secrets
)

// holdsSecretWord is much cheaper than a regular expression, and true for few lines.
func holdsSecretWord(s string) bool {
	s = strings.ToLower(s)
	for word := range strings.SplitSeq(secretWords, "|") {
		if strings.Contains(s, word) {
			return true
		}
	}
	return false
}

// holdsScheme reports text in which credentialPattern could match.
func holdsScheme(s string) bool {
	if !strings.ContainsAny(s, " \t\n\v\f\r") {
		return false
	}
	s = strings.ToLower(s)
	return strings.Contains(s, "bearer") || strings.Contains(s, "basic")
}

// redactText replaces secrets in free text, such as the text of an error or a path. Every expression is tried only where
// it could match, because each line of the log passes here.
func redactText(s string) string {
	if strings.Contains(s, "eyJ") {
		s = jwtPattern.ReplaceAllString(s, redacted)
	}
	if strings.Contains(s, "rt1.") {
		s = refreshPattern.ReplaceAllString(s, redacted)
	}
	if strings.Contains(s, "sk_") {
		s = keyPattern.ReplaceAllString(s, redacted)
	}
	if holdsScheme(s) {
		s = credentialPattern.ReplaceAllString(s, "${1} "+redacted)
	}
	if strings.Contains(s, "://") && strings.Contains(s, "@") {
		s = userinfoPattern.ReplaceAllString(s, "${1}"+redacted+"@")
	}
	if strings.ContainsAny(s, "?&") {
		s = queryPattern.ReplaceAllString(s, "${1}"+redacted)
	}
	if holdsSecretWord(s) {
		s = assignPattern.ReplaceAllString(s, "${1}${2}"+redacted)
	}
	return s
}

// redactURL replaces secrets in an address or in the path and query of a request. It works on the raw text, so that
// what is not well-formed is redacted as well; the fragment is dropped.
func redactURL(s string) string {
	s, _, _ = strings.Cut(s, "#")
	path, query, hasQuery := strings.Cut(s, "?")
	path = redactPath(path)
	if !hasQuery {
		return path
	}
	pairs := strings.FieldsFunc(query, func(r rune) bool { return r == '&' || r == ';' })
	for i, pair := range pairs {
		pairs[i] = redactPair(pair)
	}
	return path + "?" + strings.Join(pairs, "&")
}

// redactPath looks through the escapes of a path, which readers of logs undo.
func redactPath(path string) string {
	plain, err := url.PathUnescape(path)
	if err != nil {
		return redactText(path)
	}
	if clean := redactText(plain); clean != plain {
		return (&url.URL{Path: clean}).EscapedPath()
	}
	return path
}

// redactPair replaces the value of a parameter that is named like a secret or holds one, and the whole pair when the
// name holds one.
func redactPair(pair string) string {
	name, value, _ := strings.Cut(pair, "=")
	plain, err := url.QueryUnescape(name)
	switch {
	case err != nil || redactText(plain) != plain:
		return redacted
	case holdsSecretWord(plain) || parameterPattern.MatchString(plain) || holdsSecret(value):
		return name + "=" + redacted
	}
	return pair
}

// holdsSecret reports a value inside which, escaped or not, a secret is named or shaped like one. What cannot be
// unescaped within the bound counts as a secret.
func holdsSecret(value string) bool {
	for range maxUnescape {
		if redactText(value) != value {
			return true
		}
		plain, err := url.QueryUnescape(value)
		if err != nil {
			return true
		}
		if plain == value {
			return false
		}
		value = plain
	}
	return redactText(value) != value || strings.Contains(value, "%")
}
