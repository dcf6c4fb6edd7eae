package doctor

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"unicode"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/settings"
)

const settingsHelp = "satchel config check"

// settingsLines counts the keys and shows every problem and every warning.
func settingsLines(s *settings.Settings) []Line {
	set := 0
	for _, key := range s.Keys() {
		if key.Source != settings.FromDefault {
			set++
		}
	}
	var lines []Line
	for _, problem := range problems(s.Err()) {
		lines = append(lines, line("settings", extensions.Fail, problem, settingsHelp))
	}
	if len(lines) == 0 {
		message := fmt.Sprintf("%d keys, %d set, 0 unknown", len(s.Keys()), set)
		lines = append(lines, line("settings", extensions.OK, message, ""))
	}
	for _, warning := range s.Warnings() {
		lines = append(lines, line("settings", extensions.Warn, warning, settingsHelp))
	}
	return lines
}

// problems takes the joined errors of the settings apart.
func problems(err error) []string {
	if err == nil {
		return nil
	}
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		var out []string
		for _, e := range joined.Unwrap() {
			out = append(out, problems(e)...)
		}
		return out
	}
	return []string{err.Error()}
}

// modeLines say how the server would be reached and what is wrong with that, as far as settings tell.
func modeLines(info Info) []Line {
	mode, level := "development", extensions.Info
	next := "for real users set SATCHEL_MODE=production"
	if info.Production {
		mode, level, next = "production", extensions.OK, ""
	}
	lines := []Line{line("mode", level, mode+", listens on "+info.Addr(), next)}
	local := isLoopback(info.Addr())
	if !info.Production {
		if !local {
			lines = append(lines, line("network", extensions.Warn, "a development server is reachable by others on "+info.Addr(),
				"listen on 127.0.0.1, or set SATCHEL_MODE=production"))
		}
		return lines
	}
	lines = append(lines, publicURLLine(info.PublicURL))
	switch {
	case info.TrustedProxies > 0:
		lines = append(lines, line("proxy", extensions.OK, fmt.Sprintf("%d trusted address ranges", info.TrustedProxies), ""))
	case local:
		lines = append(lines, line("proxy", extensions.Warn,
			"no proxy is trusted, so every client has the address of the proxy and all share one rate limit",
			"set SATCHEL_API_TRUSTED_PROXIES=127.0.0.1"))
	default:
		lines = append(lines, line("tls/proxy", extensions.Warn,
			info.Addr()+" is open to the network and no proxy is trusted: without TLS passwords can be read on the way",
			"serve a domain (satchel serve api.example.com), or listen on 127.0.0.1 behind a proxy and set SATCHEL_API_TRUSTED_PROXIES"))
	}
	return lines
}

func publicURLLine(text string) Line {
	const name, next = "public url", "set SATCHEL_PUBLIC_URL=https://api.example.com"
	u, err := url.Parse(text)
	switch {
	case text == "":
		return line(name, extensions.Warn, "not set, so links in mails may lead nowhere", next)
	case err != nil || u.Host == "":
		return line(name, extensions.Fail, "not an absolute address", next)
	case u.Scheme != "https":
		return line(name, extensions.Warn, u.Redacted()+" is not https: passwords can be read on the way", next)
	}
	return line(name, extensions.OK, u.Redacted(), "")
}

// isLoopback reports addresses that only this machine reaches. A missing host means all interfaces.
func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func join(list []string) string {
	seen := map[string]bool{}
	var out []string
	for _, s := range list {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return strings.Join(out, ", ")
}

// printable keeps what a damaged file or a strange name holds from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) {
			return ' '
		}
		return r
	}, s)
}
