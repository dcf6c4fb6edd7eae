package dev

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/satchelbase/satchel/extensions/identities"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/jwks"
	"github.com/satchelbase/satchel/extensions/internal/outbound"
	"github.com/satchelbase/satchel/extensions/settings"
)

// run starts the provider and returns the settings that it prints, by key, and the address for tokens.
func run(t *testing.T, caFile string) (env []string, tokenURL string, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	read, write := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := serve(ctx, write, "127.0.0.1:0", caFile)
		_ = write.CloseWithError(io.EOF)
		done <- err
	}()
	lines := bufio.NewScanner(read)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "SATCHEL_"):
			env = append(env, line)
		case strings.HasPrefix(line, "curl "):
			tokenURL = strings.Trim(line[strings.LastIndex(line, " ")+1:], "'")
		case strings.HasPrefix(line, "Ctrl-C"):
			return env, tokenURL, func() error {
				cancel()
				select {
				case err := <-done:
					return err
				case <-time.After(30 * time.Second):
					t.Fatal("it does not stop")
					return nil
				}
			}
		}
	}
	t.Fatalf("it ended: %v", <-done)
	return nil, "", nil
}

// The printed settings and a token of the printed address sign somebody in.
func TestIdentityProvider(t *testing.T) {
	env, tokenURL, stop := run(t, "")
	s := settings.Load(env)
	cfg := settings.Section[identities.Config](s, "identities")
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	root, err := outbound.ReadCA(cfg.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	client := outbound.NewClient(outbound.Options{Root: root, AllowLoopback: true})
	resp, err := client.Post(tokenURL+"&alg=RS256&nonce=n", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var minted struct {
		IDToken string `json:"idToken"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&minted); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%d %v", resp.StatusCode, err)
	}
	claims := jwt.MapClaims{}
	keys := jwks.New(client, jwks.Source{Issuer: cfg.OIDCIssuer}, nil)
	_, err = jwt.ParseWithClaims(minted.IDToken, claims, func(token *jwt.Token) (any, error) {
		kid, _ := token.Header["kid"].(string)
		return keys.Key(t.Context(), kid, "RS256")
	})
	if err != nil || claims["sub"] != "ada" || claims["email_verified"] != true {
		t.Errorf("token %v: %v", claims, err)
	}
	app := apptest.New(t, identities.New(cfg, identities.Deps{}))
	body := map[string]string{"provider": "oidc", "idToken": minted.IDToken, "nonce": "n"}
	if r := app.Do(t, apptest.Request{Method: "POST", Path: "/api/v1/auth/exchange", Body: body}); r.Status != 200 || !strings.Contains(string(r.Body), "ada@example.com") {
		t.Errorf("exchange: %d %s", r.Status, r.Body)
	}
	if resp, err := client.Post(strings.Split(tokenURL, "?")[0], "", nil); err != nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("without sub: %v", err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(cfg.CAFile); !os.IsNotExist(err) {
		t.Errorf("the certificate is left behind: %v", err)
	}
}

func TestCertificateStays(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ca.pem")
	_, _, stop := run(t, file)
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := outbound.ReadCA(file); err != nil {
		t.Error(err)
	}
}

func TestLoopbackOnly(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", "192.0.2.1:9400", "example.com:9400", ":9400", "9400"} {
		if err := serve(t.Context(), io.Discard, address, ""); err == nil {
			t.Errorf("%s: no error", address)
		}
	}
}
