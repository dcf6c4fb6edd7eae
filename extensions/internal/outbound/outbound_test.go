package outbound_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
	"github.com/satchelbase/satchel/extensions/internal/stubs/idp"
)

func TestPublic(t *testing.T) {
	for text, want := range map[string]bool{
		"8.8.8.8": true, "1.1.1.1": true, "2606:4700::1111": true, "::ffff:8.8.8.8": true, "172.32.0.1": true, "100.128.0.1": true,
		"127.0.0.1": false, "127.9.9.9": false, "::1": false, "0.0.0.0": false, "::": false, "0.1.2.3": false,
		"10.0.0.1": false, "172.16.0.1": false, "192.168.1.1": false, "fc00::1": false, "fd12::1": false,
		"169.254.169.254": false, "fe80::1": false, "fe80::1%eth0": false, "fec0::1": false,
		"224.0.0.1": false, "239.1.1.1": false, "ff02::1": false, "ff0e::1": false,
		"100.64.0.1": false, "100.100.100.200": false, "192.0.0.8": false, "198.18.0.1": false, "198.19.255.255": false,
		"240.0.0.1": false, "255.255.255.255": false, "::ffff:10.0.0.1": false, "::ffff:127.0.0.1": false, "::ffff:169.254.169.254": false,
		"64:ff9b::7f00:1": false, "64:ff9b:1::1": false, "2002:7f00:1::": false, "2001:0:1::": false, "::7f00:1": false, "::ffff:0:127.0.0.1": false,
	} {
		if got := outbound.Public(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: public %v", text, got)
		}
	}
	if outbound.Public(netip.Addr{}) {
		t.Error("no address is public")
	}
}

func get(t *testing.T, client *http.Client, url string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err == nil {
		t.Cleanup(func() { _ = resp.Body.Close() })
	}
	return resp, err
}

func TestRefusals(t *testing.T) {
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	provider, err := idp.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer provider.Close()
	strict := outbound.NewClient(outbound.Options{Root: provider.CA})
	loose := outbound.NewClient(outbound.Options{Root: provider.CA, AllowLoopback: true})
	named := outbound.NewClient(outbound.Options{Root: provider.CA, AllowLoopback: true, DenyHosts: []string{"LocalHost"}})
	t.Setenv("HTTPS_PROXY", plain.URL) // must not be asked
	port := provider.Issuer[strings.LastIndex(provider.Issuer, ":"):]
	for name, c := range map[string]struct {
		client *http.Client
		url    string
		want   error
	}{
		"http":                   {loose, plain.URL, outbound.ErrScheme},
		"loopback":               {strict, provider.JWKS(), outbound.ErrAddress},
		"name of loopback":       {strict, "https://localhost" + port, outbound.ErrAddress},
		"mapped loopback":        {strict, "https://[::ffff:127.0.0.1]" + port, outbound.ErrAddress},
		"decimal loopback":       {strict, "https://2130706433" + port, nil},
		"metadata":               {strict, "https://169.254.169.254/latest/meta-data", outbound.ErrAddress},
		"metadata, loopback too": {loose, "https://169.254.169.254/latest/meta-data", outbound.ErrAddress},
		"private":                {loose, "https://10.0.0.1/", outbound.ErrAddress},
		"port":                   {strict, "https://203.0.113.7:22/", outbound.ErrPort},
		"user in the address":    {loose, "https://user@127.0.0.1" + port, outbound.ErrHost},
		"own host":               {named, "https://localhost." + port, outbound.ErrHost},
		"another scheme":         {loose, "file:///etc/passwd", outbound.ErrScheme},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := get(t, c.client, c.url)
			if err == nil || (c.want != nil && !errors.Is(err, c.want)) {
				t.Errorf("error %v, want %v", err, c.want)
			}
		})
	}
	provider.Behave(idp.Redirect)
	if _, err := get(t, loose, provider.JWKS()); !errors.Is(err, outbound.ErrRedirect) {
		t.Errorf("redirect: %v", err)
	}
	provider.Behave(idp.Fine)
	if resp, err := get(t, loose, provider.JWKS()); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("the stub with its CA: %v", err)
	}
	if _, err := get(t, outbound.NewClient(outbound.Options{AllowLoopback: true}), provider.JWKS()); err == nil {
		t.Error("the stub without its CA: no error")
	}
}

func TestRead(t *testing.T) {
	if raw, err := outbound.Read(strings.NewReader("1234"), 4); err != nil || string(raw) != "1234" {
		t.Errorf("exact: %q, %v", raw, err)
	}
	if _, err := outbound.Read(strings.NewReader("12345"), 4); !errors.Is(err, outbound.ErrTooLarge) {
		t.Errorf("one more: %v", err)
	}
}

func TestReadCA(t *testing.T) {
	provider, err := idp.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer provider.Close()
	dir := t.TempDir()
	write := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if ca, err := outbound.ReadCA(write("ca.pem", provider.CAPEM())); err != nil || !ca.Equal(provider.CA) {
		t.Errorf("good: %v", err)
	}
	for _, path := range []string{write("text.pem", []byte("text")), filepath.Join(dir, "none.pem"), write("bad.pem", []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))} {
		if _, err := outbound.ReadCA(path); err == nil {
			t.Errorf("%s: no error", filepath.Base(path))
		}
	}
}

func TestRetryAfter(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "0": 0, "-5": 0, "soon": 0, "99999999999": 24 * time.Hour,
		"Wed, 21 Oct 2015 07:28:00 GMT": 0, "Fri, 31 Dec 9999 23:59:59 GMT": 24 * time.Hour,
	} {
		if got := outbound.RetryAfter(http.Header{"Retry-After": {value}}); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}
