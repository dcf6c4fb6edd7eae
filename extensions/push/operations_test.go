package push_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/stubs/apns"
	"github.com/satchelbase/satchel/extensions/internal/stubs/loopback"
	"github.com/satchelbase/satchel/extensions/push/credentials"
	"github.com/satchelbase/satchel/extensions/push/sender"
)

type m = map[string]any

// An owner connects a provider over the API. The secret is sealed in its row and nowhere else.
func TestOperations(t *testing.T) {
	f := start(t)
	_, root := f.Superuser(t)
	_, user := f.User(t, "ada@example.test")
	keys := 0
	save := func(token string, in m) apptest.Response {
		t.Helper()
		keys++
		return f.Do(t, apptest.Request{
			Method: http.MethodPost, Path: "/api/v1/operations/push.credentials.save", Token: token, Body: in,
			Header: map[string]string{"Idempotency-Key": "one-for-each-attempt-" + strconv.Itoa(keys)},
		})
	}
	key := string(f.stub.P8())
	ours := func(id string) m {
		return m{"apns": m{"key": key, "keyId": id, "teamId": apns.TeamID, "topic": apns.Topic}}
	}
	f.stale = true
	for name, c := range map[string]struct {
		token string
		in    m
		code  string
		field string
	}{
		"a user":          {user, ours(apns.KeyID), "operations.caller_refused", ""},
		"nobody":          {"", ours(apns.KeyID), "api.unauthorized", ""},
		"not recent":      {root, ours(apns.KeyID), "api.forbidden", ""},
		"an unknown name": {root, m{"gcm": m{}}, "api.validation_failed", "gcm"},
	} {
		if r := save(c.token, c.in); r.Code() != c.code || !strings.Contains(string(r.Body), c.field) {
			t.Errorf("%s: %d %s", name, r.Status, r.Body)
		}
	}
	f.stale = false
	for name, c := range map[string]struct {
		in    m
		code  string
		words string
	}{
		"none":       {m{}, "api.validation_failed", "one of apns"},
		"two":        {m{"expo": m{}, "webpush": m{"subject": "mailto:a@satchel.dev"}}, "api.validation_failed", "one of apns"},
		"form":       {ours("short"), "api.validation_failed", `"field":"apns.keyId"`},
		"subject":    {m{"webpush": m{"subject": "mailto:admin@localhost"}}, "api.validation_failed", `"field":"webpush.subject"`},
		"no account": {m{"fcm": m{"account": "{}"}}, "api.validation_failed", `"field":"fcm.account"`},
		"refused":    {ours("OTHERKEYID"), "push.credentials_refused", "InvalidProviderToken; key id, team id and key do not belong together"},
	} {
		if r := save(root, c.in); r.Code() != c.code || !strings.Contains(string(r.Body), c.words) || strings.Contains(string(r.Body), "PRIVATE") {
			t.Errorf("%s: %d %s", name, r.Status, r.Body)
		}
	}
	if list, err := credentials.List(f.App); err != nil || len(list) != 0 {
		t.Errorf("refused credentials are kept: %v, %v", list, err)
	}

	r := save(root, ours(apns.KeyID))
	if r.Status != http.StatusOK || !strings.Contains(string(r.Body), `"checked":true`) || !strings.Contains(string(r.Body), apns.KeyID) {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	requests := f.stub.Production.Requests()
	keys--
	if again := save(root, ours(apns.KeyID)); !bytes.Equal(again.Body, r.Body) || f.stub.Production.Requests() != requests {
		t.Errorf("repeated: %d %s", again.Status, again.Body)
	}
	if r := f.send(t); r.Outcome != sender.Accepted {
		t.Errorf("%+v", r)
	}
	f.stub.BehaveAll(loopback.Down)
	if r := save(root, ours(apns.KeyID)); r.Status != http.StatusOK || !strings.Contains(string(r.Body), `"checked":false`) {
		t.Errorf("out of order: %d %s", r.Status, r.Body)
	}
	first, second := save(root, m{"webpush": m{"subject": "mailto:a@satchel.dev"}}), save(root, m{"webpush": m{"subject": "mailto:b@satchel.dev"}})
	if publicKey(t, first) == "" || publicKey(t, first) != publicKey(t, second) {
		t.Errorf("another key: %s, then %s", first.Body, second.Body)
	}
	if third := save(root, m{"webpush": m{"subject": "mailto:b@satchel.dev", "newKey": true}}); publicKey(t, third) == publicKey(t, first) {
		t.Error("the key is the old one")
	}
	save(root, m{"expo": m{"accessToken": "expo-token-that-nobody-knows"}})

	list := f.Do(t, apptest.Request{Path: "/api/v1/operations/push.credentials", Token: root})
	for _, want := range []string{apns.KeyID, apns.Topic, `"publicKey"`, `"protected":true`, `"savedAt"`} {
		if !strings.Contains(string(list.Body), want) {
			t.Errorf("the list lacks %s: %s", want, list.Body)
		}
	}
	f.hidden(t, strings.Split(key, "\n")[1], "expo-token-that-nobody-knows")

	remove := func() apptest.Response {
		return f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/operations/push.credentials.remove", Token: root, Body: m{"platform": "expo"}})
	}
	if r := remove(); r.Status != http.StatusOK || strings.Contains(string(r.Body), "expo") {
		t.Errorf("%d %s", r.Status, r.Body)
	}
	if r := remove(); r.Status != http.StatusNotFound {
		t.Errorf("twice: %d %s", r.Status, r.Body)
	}
	for _, want := range []string{
		`push.credentials.save success {"facts":{"keyId":"` + apns.KeyID + `","teamId":"` + apns.TeamID + `","topic":"` + apns.Topic + `"},"platform":"apns"}`,
		`push.credentials.save failure {"error":"push.credentials_refused","platform":"apns"}`,
		`push.credentials.remove success {"platform":"expo"}`,
	} {
		if !slices.Contains(f.audited, want) {
			t.Errorf("the audit lacks %s:\n%s", want, strings.Join(f.audited, "\n"))
		}
	}
}

func publicKey(t *testing.T, r apptest.Response) string {
	t.Helper()
	var out struct{ Data credentials.Entry }
	if err := json.Unmarshal(r.Body, &out); err != nil || r.Status != http.StatusOK {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	return out.Data.Facts.PublicKey
}

// hidden looks for secrets in everything that the server has written: records, the audit, idempotency keys, logs.
func (f *fixture) hidden(t *testing.T, secrets ...string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(f.DataDir(), "*.db*"))
	if err != nil || len(files) < 2 {
		t.Fatalf("%v %v", files, err)
	}
	for _, name := range files {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range secrets {
			if len(s) < 20 || bytes.Contains(content, []byte(s)) {
				t.Errorf("%s is in %s", s, filepath.Base(name))
			}
		}
	}
	for _, s := range secrets {
		if strings.Contains(strings.Join(f.audited, " "), s) {
			t.Errorf("%s is in the audit", s)
		}
	}
}
