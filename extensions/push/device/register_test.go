package device_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/push/device"
	"github.com/satchelbase/satchel/extensions/push/sender"
)

const (
	fcmToken  = "cXyZ-registration:APA91bHunB4fcmfcmfcmfcm"
	apnsToken = "a1B2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90"
)

// subscription is that of RFC 8291 section 5, at an address of a push service.
func subscription(endpoint string) map[string]any {
	return map[string]any{
		"endpoint": endpoint, "expirationTime": nil,
		"keys": map[string]string{
			"p256dh": "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4",
			"auth":   "BTBZMqHH6r4Tts7J_aSIgg",
		},
	}
}

func TestRegister(t *testing.T) {
	f := start(t, nil)
	p := f.signIn(t, f.ada)
	r := p.want(t, http.StatusOK, http.MethodPut, current, map[string]any{
		"platform": "apns", "token": apnsToken, "environment": "sandbox", "app": "com.example.app", "locale": "pt_BR",
		"timeZone": "America/Sao_Paulo", "appVersion": "1.4.0",
	})
	if r.Header.Get("Cache-Control") != "no-store" || bytes.Contains(bytes.ToLower(r.Body), []byte(strings.ToLower(apnsToken))) {
		t.Errorf("answer: %v %s", r.Header, r.Body)
	}
	list, err := f.registry.List(t.Context(), f.App, only(f.ada), "", 10)
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	d := list[0]
	if d.User != device.AccountOf(f.ada) || d.Session != p.session || d.Platform != sender.APNs || d.Locale != "pt-BR" || d.TimeZone != "America/Sao_Paulo" || d.AppVersion != "1.4.0" {
		t.Errorf("device: %+v", d)
	}
	target, err := f.registry.Open(d)
	if err != nil || target != (sender.Target{Token: strings.ToLower(apnsToken), Environment: sender.Sandbox, App: "com.example.app"}) {
		t.Errorf("target: %+v, %v", target, err)
	}

	// The environment is the token's: another phone has the app of the store.
	other := f.signIn(t, f.ada)
	other.register(t, strings.Replace(apnsToken, "a1", "ff", 1), map[string]any{"platform": "apns", "environment": "production"})
	list, err = f.registry.List(t.Context(), f.App, only(f.ada), "", 10)
	if err != nil || len(list) != 2 || list[0].Environment == list[1].Environment {
		t.Errorf("%+v, %v", list, err)
	}

	shown := other.want(t, http.StatusOK, http.MethodGet, devices, nil).JSON(t)["data"].([]any)
	if len(shown) != 2 || shown[0].(map[string]any)["current"] != true || shown[1].(map[string]any)["current"] != false || shown[1].(map[string]any)["environment"] != "sandbox" {
		t.Errorf("list: %v", shown)
	}
	other.want(t, http.StatusNoContent, http.MethodDelete, current, nil)
	other.want(t, http.StatusNoContent, http.MethodDelete, current, nil)
	if got := f.reach(t, only(f.ada)); !slices.Equal(got, []string{d.ID}) {
		t.Errorf("after the other has unregistered: %v", got)
	}
}

func TestSubscriptions(t *testing.T) {
	f := start(t, nil)
	p := f.signIn(t, f.ada)
	body := map[string]any{"platform": "webpush", "subscription": subscription("https://push.example.com/abc")}
	id := p.want(t, http.StatusOK, http.MethodPut, current, body).JSON(t)["data"].(map[string]any)["id"]
	list, err := f.registry.List(t.Context(), f.App, device.Audience{All: true}, "", 10)
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	target, err := f.registry.Open(list[0])
	if err != nil || !strings.Contains(target.Token, "https://push.example.com/abc") || strings.Contains(target.Token, "expiration") {
		t.Errorf("target: %+v, %v", target, err)
	}
	// The endpoint is what it is known by: new keys are no new device.
	changed := subscription("https://push.example.com/abc")
	changed["keys"].(map[string]string)["auth"] = "AAAAAAAAAAAAAAAAAAAAAA"
	again := f.signIn(t, f.ada)
	if got := again.want(t, http.StatusOK, http.MethodPut, current, map[string]any{"platform": "webpush", "subscription": changed}).JSON(t)["data"].(map[string]any)["id"]; got != id {
		t.Errorf("another device: %v and %v", id, got)
	}
}

func TestHostileRegistrations(t *testing.T) {
	f := start(t, nil)
	p := f.signIn(t, f.ada)
	long := strings.Repeat("a", 5000)
	keyless := subscription("https://push.example.com/x")
	keyless["keys"] = map[string]string{"p256dh": "AAAA", "auth": "AAAA"}
	for name, c := range map[string]struct {
		body   any
		fields []string
	}{
		"no members":        {`{}`, []string{"platform"}},
		"unknown member":    {`{"platform":"fcm","token":"` + fcmToken + `","user":"x"}`, []string{"user"}},
		"wrong types":       {`{"platform":5,"token":["a"],"timeZone":{}}`, []string{"platform", "token", "timeZone"}},
		"unknown platform":  {`{"platform":"pigeon","token":"x"}`, []string{"platform"}},
		"no token":          {`{"platform":"fcm"}`, []string{"token"}},
		"long token":        {`{"platform":"fcm","token":"` + long + `"}`, []string{"token"}},
		"token with a path": {`{"platform":"apns","token":"../../3/device/x"}`, []string{"token"}},
		"odd digits":        {`{"platform":"apns","token":"` + apnsToken + `f"}`, []string{"token"}},
		"expo":              {`{"platform":"expo","token":"ExponentPushToken[a]b]"}`, []string{"token"}},
		"all at once": {
			map[string]any{"platform": "fcm", "token": "x\r\ny", "environment": "staging", "app": "a\nb", "locale": "../../x", "timeZone": "../../etc/passwd", "appVersion": "\x00"},
			[]string{"token", "environment", "app", "locale", "timeZone", "appVersion"},
		},
		"sandbox of FCM":         {`{"platform":"fcm","token":"` + fcmToken + `","environment":"sandbox"}`, []string{"environment"}},
		"the machine's zone":     {`{"platform":"fcm","token":"` + fcmToken + `","timeZone":"Local"}`, []string{"timeZone"}},
		"both":                   {map[string]any{"platform": "fcm", "token": fcmToken, "subscription": subscription("https://a.example")}, []string{"subscription"}},
		"token for a browser":    {map[string]any{"platform": "webpush", "token": "x"}, []string{"token", "subscription"}},
		"subscription of HTTP":   {map[string]any{"platform": "webpush", "subscription": subscription("http://push.example.com/")}, []string{"subscription"}},
		"subscription of a file": {map[string]any{"platform": "unifiedpush", "subscription": subscription("file:///etc/passwd")}, []string{"subscription"}},
		"with credentials":       {map[string]any{"platform": "webpush", "subscription": subscription("https://u:p@push.example.com/")}, []string{"subscription"}},
		"no keys":                {map[string]any{"platform": "webpush", "subscription": keyless}, []string{"subscription"}},
		"long endpoint":          {map[string]any{"platform": "webpush", "subscription": subscription("https://push.example.com/" + long)}, []string{"subscription"}},
		"subscription as text":   {`{"platform":"webpush","subscription":"https://push.example.com"}`, []string{"subscription"}},
	} {
		r := p.do(t, http.MethodPut, current, c.body)
		if r.Status != http.StatusBadRequest || r.Code() != "api.validation_failed" {
			t.Errorf("%s: %d %s", name, r.Status, r.Body)
			continue
		}
		var got []string
		for _, e := range r.JSON(t)["errors"].([]any) {
			got = append(got, e.(map[string]any)["field"].(string))
		}
		slices.Sort(got)
		if want := slices.Sorted(slices.Values(c.fields)); !slices.Equal(got, want) {
			t.Errorf("%s: mistakes in %v, want %v", name, got, want)
		}
	}
	for name, body := range map[string]string{"array": `[]`, "twice": `{"platform":"fcm","platform":"apns"}`, "cut": `{"platform":`, "nothing but null": `null`} {
		if r := p.do(t, http.MethodPut, current, body); r.Status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", name, r.Status, r.Body)
		}
	}
	if r := p.do(t, http.MethodPut, current, `{"platform":"fcm","token":"`+strings.Repeat("a", 40<<10)+`"}`); r.Status != http.StatusRequestEntityTooLarge {
		t.Errorf("large body: %d %s", r.Status, r.Body)
	}
	if n := f.count(t, "push_devices"); n != 0 {
		t.Errorf("%d devices", n)
	}
}

func TestCallers(t *testing.T) {
	f := start(t, nil)
	_, root := f.Superuser(t)
	root, err := f.sessions.Harden(must(f.FindAuthRecordByEmail(core.CollectionNameSuperusers, "root@example.test")), root)
	if err != nil {
		t.Fatal(err)
	}
	r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/collections/users/impersonate/" + f.ada.Id, Token: root, Body: `{}`})
	acting, _ := r.JSON(t)["token"].(string)
	plain, err := f.ada.NewAuthToken()
	if err != nil {
		t.Fatal(err)
	}
	if plain, err = f.sessions.Harden(f.ada, plain); err != nil {
		t.Fatal(err)
	}
	body := map[string]any{"platform": "fcm", "token": fcmToken}
	for name, c := range map[string]struct {
		token, device string
		status        int
		code          string
	}{
		"guest":                {"", "", 401, "api.unauthorized"},
		"superuser":            {root, "0123456789abcdef", 403, "push.caller_unsupported"},
		"admin who acts":       {acting, "0123456789abcdef", 403, "push.caller_unsupported"},
		"no device":            {plain, "", 400, "push.device_required"},
		"no usable device":     {plain, "x", 400, "push.device_required"},
		"without a session":    {plain, "0123456789abcdef", 200, ""},
		"session of no avail ": {"Bearer nonsense", "0123456789abcdef", 401, "sessions.token_invalid"},
	} {
		req := apptest.Request{Method: http.MethodPut, Path: current, Token: c.token, Body: body, Header: map[string]string{}}
		if c.device != "" {
			req.Header["X-Device-Id"] = c.device
		}
		if r := f.Do(t, req); r.Status != c.status || r.Code() != c.code {
			t.Errorf("%s: %d %s", name, r.Status, r.Body)
		}
	}
	if n := len(f.reach(t, only(f.ada))); n != 1 {
		t.Errorf("%d devices", n)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A token is at one device: the one that has registered it last.
func TestTokenMoves(t *testing.T) {
	f := start(t, func(c *pushConfig) { c.Topics = []string{"news=*"} })
	first := f.signIn(t, f.ada)
	id := first.register(t, fcmToken)
	first.want(t, http.StatusNoContent, http.MethodPut, "/api/v1/push/topics/news", nil)

	// Another token in the session is the same device.
	if got := first.register(t, fcmToken+"2"); got != id {
		t.Errorf("a new token made a new device: %s and %s", id, got)
	}
	first.register(t, fcmToken)

	// So is the token in another session of the account, with its topics.
	second := f.signIn(t, f.ada)
	if got := second.register(t, fcmToken); got != id {
		t.Errorf("a new session made a new device: %s and %s", id, got)
	}
	if got := f.reach(t, device.Audience{Topic: "news"}); !slices.Equal(got, []string{id}) {
		t.Errorf("topic: %v", got)
	}

	// With another account it is another device, without topics, and the first account's is gone.
	bob := f.signIn(t, f.bob)
	moved := bob.register(t, fcmToken)
	if moved == id || len(f.reach(t, only(f.ada))) != 0 || !slices.Equal(f.reach(t, only(f.bob, f.ada)), []string{moved}) {
		t.Errorf("ada %v, bob %v", f.reach(t, only(f.ada)), f.reach(t, only(f.bob)))
	}
	if f.count(t, "push_topics") != 0 || f.count(t, "push_devices") != 1 {
		t.Error("the topics moved with the token")
	}

	// A session that has a device and gets the token of another one of the account has one device in the end.
	a, b := f.signIn(t, f.ada), f.signIn(t, f.ada)
	kept := a.register(t, fcmToken+"a")
	b.register(t, fcmToken+"b")
	if got := a.register(t, fcmToken+"b"); got != kept || f.count(t, "push_devices WHERE record = '"+f.ada.Id+"'") != 1 {
		t.Errorf("%s, want %s", got, kept)
	}
	// The same text is another token on another platform.
	c := f.signIn(t, f.bob)
	c.register(t, strings.ToLower(apnsToken), map[string]any{"platform": "apns"})
	d := f.signIn(t, f.bob)
	d.register(t, strings.ToLower(apnsToken), map[string]any{"platform": "fcm"})
	if n := len(f.reach(t, only(f.bob))); n != 3 {
		t.Errorf("%d devices of bob, want 3", n)
	}
}

func TestSealedAtRest(t *testing.T) {
	f := start(t, nil)
	p := f.signIn(t, f.ada)
	p.register(t, fcmToken)
	q := f.signIn(t, f.bob)
	q.want(t, http.StatusOK, http.MethodPut, current, map[string]any{"platform": "webpush", "subscription": subscription("https://push.example.com/secret-endpoint")})
	plain := sha256.Sum256([]byte("fcm|" + fcmToken))
	looked := 0
	err := fs.WalkDir(os.DirFS(f.DataDir()), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := fs.ReadFile(os.DirFS(f.DataDir()), path)
		if err != nil {
			return err
		}
		looked += bytes.Count(raw, []byte("push_devices"))
		for _, secret := range []string{fcmToken, fcmToken[:24], "secret-endpoint", "BTBZMqHH6r4Tts7J_aSIgg", hex.EncodeToString(plain[:])} {
			if bytes.Contains(raw, []byte(secret)) {
				t.Errorf("%s holds %q", path, secret)
			}
		}
		return nil
	})
	if err != nil || looked == 0 {
		t.Fatalf("nothing was looked at: %v", err)
	}

	// A sealed token is good in its row only.
	f.exec(t, "UPDATE push_devices SET token = (SELECT token FROM push_devices WHERE platform = 'fcm')", nil)
	list, err := f.registry.List(t.Context(), f.App, only(f.bob), "", 1)
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if target, err := f.registry.Open(list[0]); err == nil {
		t.Errorf("a token was opened in another row: %v", target)
	}
}

func TestDeviceLimit(t *testing.T) {
	f := start(t, func(c *pushConfig) { c.Devices = 2 })
	var ids []string
	for i := range 3 {
		p := f.signIn(t, f.ada)
		ids = append(ids, p.register(t, fmt.Sprint(fcmToken, i)))
		f.seen(t, ids[i], time.Hour-time.Duration(i)*time.Minute)
	}
	if got := f.reach(t, only(f.ada)); !slices.Equal(got, slices.Sorted(slices.Values(ids[1:]))) {
		t.Errorf("%v are left of %v", got, ids)
	}
}

func TestDead(t *testing.T) {
	f := start(t, func(c *pushConfig) { c.Topics = []string{"news=*"} })
	p := f.signIn(t, f.ada)
	id := p.register(t, fcmToken)
	p.want(t, http.StatusNoContent, http.MethodPut, "/api/v1/push/topics/news", nil)
	dead := func(since time.Time) {
		t.Helper()
		if err := f.registry.Dead(f.App, id, since, "Unregistered"); err != nil {
			t.Fatal(err)
		}
	}
	dead(time.Now().Add(-time.Second)) // what the provider says is of an older registration
	if got := f.reach(t, only(f.ada)); len(got) != 1 {
		t.Fatal("a device that has registered since is dead")
	}
	f.seen(t, id, time.Minute)
	dead(time.Now().Add(-time.Second))
	if len(f.reach(t, only(f.ada)))+len(f.reach(t, device.Audience{Topic: "news"}))+len(f.reach(t, device.Audience{All: true})) != 0 {
		t.Fatal("a dead device is sent to")
	}
	if f.count(t, "push_devices WHERE token = '' AND reason = 'Unregistered'") != 1 {
		t.Error("the token is kept, or the reason is not")
	}
	if body := p.want(t, http.StatusOK, http.MethodGet, devices, nil).Body; !bytes.Contains(body, []byte(`"state":"dead"`)) {
		t.Errorf("%s", body)
	}
	// It lives again when it registers, with its topics.
	if got := p.register(t, fcmToken); got != id || len(f.reach(t, device.Audience{Topic: "news"})) != 1 {
		t.Errorf("not alive: %s", got)
	}
	dead(time.Time{})
	if len(f.reach(t, only(f.ada))) != 0 {
		t.Error("without a moment nothing happens")
	}
}

func TestStale(t *testing.T) {
	f := start(t, nil)
	p := f.signIn(t, f.ada)
	id := p.register(t, fcmToken)
	sweep := func() {
		t.Helper()
		if err := f.registry.Sweep(t.Context(), f.App); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		ago           time.Duration
		reached, kept int
	}{{59 * 24 * time.Hour, 1, 1}, {61 * 24 * time.Hour, 0, 1}, {269 * 24 * time.Hour, 0, 1}, {271 * 24 * time.Hour, 0, 0}} {
		f.seen(t, id, c.ago)
		sweep()
		if got := len(f.reach(t, only(f.ada))); got != c.reached || f.count(t, "push_devices") != c.kept {
			t.Errorf("after %v: %d reached, %d kept", c.ago, got, f.count(t, "push_devices"))
		}
		if c.kept == 1 && c.reached == 0 {
			if body := p.want(t, http.StatusOK, http.MethodGet, devices, nil).Body; !bytes.Contains(body, []byte(`"state":"stale"`)) {
				t.Errorf("%s", body)
			}
		}
	}
	// The dead go sooner, and more rows than a transaction takes go, too.
	for i := range 3 {
		f.signIn(t, f.ada).register(t, fmt.Sprint(fcmToken, i))
	}
	f.exec(t, "UPDATE push_devices SET dead_at = 1", nil)
	f.exec(t, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1200) INSERT INTO push_counts (collection, record, category, at) SELECT 'c', 'r', 'x', 1 FROM n`, nil)
	sweep()
	if f.count(t, "push_devices")+f.count(t, "push_counts") != 0 {
		t.Error("old rows are left")
	}
}

func TestListIsPaged(t *testing.T) {
	f := start(t, func(c *pushConfig) { c.Topics = []string{`odd=@request.auth.name = "odd"`} })
	var all, odd []string
	for i := range 5 {
		p := f.signIn(t, f.ada)
		if i%2 == 1 {
			p = f.signIn(t, f.bob)
		}
		f.rename(t, p.user, "odd")
		id := p.register(t, fmt.Sprint(fcmToken, i))
		p.want(t, http.StatusNoContent, http.MethodPut, "/api/v1/push/topics/odd", nil)
		all = append(all, id)
		if p.user == f.bob {
			odd = append(odd, id)
		}
	}
	f.rename(t, f.ada, "even")
	slices.Sort(all)
	slices.Sort(odd)
	for _, c := range []struct {
		audience device.Audience
		want     []string
	}{{device.Audience{All: true}, all}, {only(f.ada, f.bob, f.ada), all}, {only(f.bob), odd}, {device.Audience{Topic: "odd"}, odd}, {device.Audience{}, nil}, {device.Audience{Topic: "none"}, nil}} {
		for limit := 1; limit < 7; limit++ {
			var got []string
			for after := ""; ; {
				page, err := f.registry.List(t.Context(), f.App, c.audience, after, limit)
				if err != nil || len(page) > limit {
					t.Fatal(page, err)
				}
				for _, d := range page {
					got = append(got, d.ID)
					after = d.ID
				}
				if len(page) < limit {
					break
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%+v by %d: %v, want %v", c.audience, limit, got, c.want)
			}
		}
	}
}
