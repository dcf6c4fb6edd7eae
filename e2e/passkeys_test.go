package e2e

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
)

// passkeyClient is what docs/passkeys.md tells a web app to do.
const passkeyClient = `
	const call = async (method, path, body, token) => {
		const answer = await fetch("/api/v1/auth/passkeys" + path, {
			method, headers: { "Content-Type": "application/json", ...(token && { Authorization: token }) }, body: body && JSON.stringify(body),
		});
		return { status: answer.status, body: answer.status === 204 ? null : await answer.json() };
	};
	window.register = async (token, name) => {
		const { data } = (await call("POST", "/options/register", {}, token)).body;
		const publicKey = PublicKeyCredential.parseCreationOptionsFromJSON(data.options);
		const credential = await navigator.credentials.create({ publicKey });
		return call("POST", "", { challengeId: data.challengeId, name, credential: credential.toJSON() }, token);
	};
	window.signIn = async () => {
		const { data } = (await call("POST", "/options/sign-in", {})).body;
		const publicKey = PublicKeyCredential.parseRequestOptionsFromJSON(data.options);
		const credential = await navigator.credentials.get({ publicKey });
		const body = { challengeId: data.challengeId, credential: credential.toJSON() };
		const answer = await call("POST", "/sign-in", body);
		answer.again = await call("POST", "/sign-in", body);
		return answer;
	};
	window.call = call;
`

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
	b.run(t, passkeyClient)
	run := func(script string) map[string]any {
		t.Helper()
		value, ok := b.run(t, script).(map[string]any)
		if !ok {
			t.Fatalf("%s has no answer", script)
		}
		return value
	}
	expect := func(answer map[string]any, status float64) map[string]any {
		t.Helper()
		if answer["status"] != status {
			raw, _ := json.Marshal(answer)
			t.Fatalf("want status %v: %s", status, raw)
		}
		body, _ := answer["body"].(map[string]any)
		return body
	}

	made, _ := expect(run("register('"+token+"', 'Laptop')"), 201)["data"].(map[string]any)
	if made["name"] != "Laptop" {
		t.Errorf("passkey: %v", made)
	}
	// The browser itself refuses to make a second one on the same device.
	again := b.run(t, "register('"+token+"', 'Laptop').then(() => 'made', e => e.name)")
	if again != "InvalidStateError" {
		t.Errorf("second passkey on one device: %v", again)
	}
	for range 2 { // the counter grows
		answer := run("signIn()")
		body := expect(answer, 200)
		record, _ := body["record"].(map[string]any)
		if record["id"] != id || record["email"] != "ada@example.com" {
			t.Errorf("signed in as %v", record)
		}
		signedIn, _ := body["token"].(string)
		s.do(t, request{Path: "/api/v1/collections/users/records/" + id, Token: signedIn}).assertStatus(t, http.StatusOK)
		replayed, _ := answer["again"].(map[string]any)
		if code := expect(replayed, 400)["code"]; code != "passkeys.challenge_invalid" {
			t.Errorf("replayed: %v", code)
		}
	}

	// Somebody who holds the device but cannot unlock it: the browser gives up, and nothing is sent.
	b.call(t, "WebAuthn.setUserVerified", map[string]any{"authenticatorId": device, "isUserVerified": false})
	if refused := b.run(t, "signIn().then(() => 'signed in', e => e.name)"); refused != "NotAllowedError" {
		t.Errorf("without verification: %v", refused)
	}
	b.call(t, "WebAuthn.setUserVerified", map[string]any{"authenticatorId": device, "isUserVerified": true})

	// Challenges survive a restart; a deleted passkey is of no use.
	begun := s.do(t, request{Method: http.MethodPost, Path: "/api/v1/auth/passkeys/options/sign-in"})
	begun.assertStatus(t, http.StatusOK)
	s.stop(t)
	s.up(t)
	options, _ := json.Marshal(begun.json(t)["data"])
	body := expect(run(`(async (data) => {
		const credential = await navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(data.options) });
		return call("POST", "/sign-in", { challengeId: data.challengeId, credential: credential.toJSON() });
	})(`+string(options)+`)`), 200)
	token, _ = body["token"].(string)
	passkey, _ := made["id"].(string)
	expect(run("call('DELETE', '/"+passkey+"', null, '"+token+"')"), 204)
	if code := expect(run("signIn()"), 400)["code"]; code != "passkeys.credential_invalid" {
		t.Errorf("deleted passkey: %v", code)
	}
}
