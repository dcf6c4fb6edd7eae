package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"
)

// passkeyClient is the client that docs/passkeys.md shows, for the server at origin.
func passkeyClient(t *testing.T, origin string) string {
	t.Helper()
	text, err := os.ReadFile("../docs/passkeys.md")
	if err != nil {
		t.Fatal(err)
	}
	found := jsBlock.FindAllSubmatch(text, -1)
	if len(found) != 1 {
		t.Fatalf("docs/passkeys.md has %d blocks of JavaScript, the test runs one", len(found))
	}
	return strings.ReplaceAll(string(found[0][1]), "https://api.example.com", origin)
}

// A real browser registers a passkey with a virtual authenticator and signs in with it.
func TestPasskeysInBrowser(t *testing.T) {
	t.Parallel()
	b := openBrowser(t)
	addr := freeAddr(t)
	_, port, _ := strings.Cut(addr, ":")
	origin := "http://localhost:" + port
	s := startAt(t, t.TempDir(), addr, relaxed("SATCHEL_PUBLIC_URL="+origin)...)
	id, token := s.user(t, "ada@example.com")

	b.call(t, "WebAuthn.enable", nil)
	device := b.call(t, "WebAuthn.addVirtualAuthenticator", map[string]any{"options": map[string]any{
		"protocol": "ctap2", "transport": "internal", "hasResidentKey": true, "hasUserVerification": true, "isUserVerified": true, "automaticPresenceSimulation": true,
	}})["authenticatorId"]
	b.open(t, origin+"/api/v1/health")
	b.run(t, passkeyClient(t, origin))
	// outcome is the value of a promise, or the code or name of its error.
	outcome := func(promise string) any {
		t.Helper()
		return b.run(t, "("+promise+").catch((e) => e.code || e.name)")
	}
	object := func(promise string) map[string]any {
		t.Helper()
		value := outcome(promise)
		got, ok := value.(map[string]any)
		if !ok {
			t.Fatalf("%s: %v", promise, value)
		}
		return got
	}

	made := object("registerPasskey('" + token + "', 'Laptop')")
	if made["name"] != "Laptop" {
		t.Errorf("passkey: %v", made)
	}
	// The browser itself refuses to make a second one on the same device: code 11 of a DOMException is InvalidStateError.
	if again := outcome("registerPasskey('" + token + "', 'Laptop')"); again != 11.0 {
		t.Errorf("second passkey on one device: %v", again)
	}
	for range 2 { // the counter grows
		auth := object("signInWithPasskey()")
		record, _ := auth["record"].(map[string]any)
		if record["id"] != id || record["email"] != "ada@example.com" {
			t.Errorf("signed in as %v", record)
		}
		signedIn, _ := auth["token"].(string)
		s.do(t, request{Path: "/api/v1/collections/users/records/" + id, Token: signedIn}).assertStatus(t, http.StatusOK)
	}

	// Somebody who holds the device but cannot unlock it: the browser gives up, and nothing is sent.
	verified := func(yes bool) {
		b.call(t, "WebAuthn.setUserVerified", map[string]any{"authenticatorId": device, "isUserVerified": yes})
	}
	verified(false)
	if refused := outcome("signInWithPasskey()"); refused != "NotAllowedError" {
		t.Errorf("without verification: %v", refused)
	}
	verified(true)

	// Challenges survive a restart, and work once.
	begun := s.do(t, request{Method: http.MethodPost, Path: "/api/v1/auth/passkeys/options/sign-in"})
	begun.assertStatus(t, http.StatusOK)
	s.stop(t)
	s.up(t)
	data, err := json.Marshal(begun.json(t)["data"])
	if err != nil {
		t.Fatal(err)
	}
	b.run(t, `(async (data) => {
		const credential = await navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(data.options) });
		window.answer = { challengeId: data.challengeId, credential: credential.toJSON() };
	})(`+string(data)+`)`)
	token, _ = object(`call("POST", "/sign-in", answer)`)["token"].(string)
	if replayed := outcome(`call("POST", "/sign-in", answer)`); replayed != "passkeys.challenge_invalid" {
		t.Errorf("replayed: %v", replayed)
	}

	passkey, _ := made["id"].(string)
	if deleted := outcome("call('DELETE', '/" + passkey + "', null, '" + token + "')"); deleted != nil {
		t.Errorf("delete: %v", deleted)
	}
	if gone := outcome("signInWithPasskey()"); gone != "passkeys.credential_invalid" {
		t.Errorf("deleted passkey: %v", gone)
	}
}
