package credentials_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/outbound"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/push/apns"
	"github.com/satchelbase/satchel/extensions/push/credentials"
	"github.com/satchelbase/satchel/extensions/push/expo"
	"github.com/satchelbase/satchel/extensions/push/fcm"
	"github.com/satchelbase/satchel/extensions/push/sender"
	"github.com/satchelbase/satchel/extensions/push/webpush"
)

const accessToken = "expo-access-token-of-the-tests"

func start(t *testing.T) *apptest.App {
	t.Helper()
	return apptest.New(t, extensions.Extension{
		Name:       "push",
		Migrations: []extensions.Migration{extensions.Tables(1795504000, "create_credentials", credentials.Statements(), credentials.Table)},
	})
}

func keeper(t *testing.T, app core.App, root string) *credentials.Keeper {
	t.Helper()
	k := credentials.New(secret.Fixed([]byte(root)), credentials.Options{Size: 2})
	k.Open(app, outbound.Options{})
	t.Cleanup(k.Close)
	return k
}

func browsers(t *testing.T) credentials.Set {
	t.Helper()
	made, err := webpush.Generate("mailto:admin@example.com")
	if err != nil {
		t.Fatal(err)
	}
	return credentials.Set{WebPush: &made}
}

func save(t *testing.T, k *credentials.Keeper, app core.App, s credentials.Set) credentials.Entry {
	t.Helper()
	entry, err := k.Save(app, s)
	if err != nil {
		t.Fatal(err)
	}
	return entry
}

func TestSealed(t *testing.T) {
	app := start(t)
	k := keeper(t, app, "root key of the tests")
	if _, err := k.Sender(t.Context(), sender.WebPush); !errors.Is(err, credentials.ErrNotConnected) {
		t.Errorf("before: %v", err)
	}
	if _, err := k.Current(sender.WebPush); !errors.Is(err, credentials.ErrNotConnected) {
		t.Errorf("before: %v", err)
	}
	set := browsers(t)
	entry := save(t, k, app, set)
	save(t, k, app, credentials.Set{Expo: &expo.Credentials{AccessToken: accessToken}})
	if entry.Facts.PublicKey == "" || entry.Facts.Subject != "mailto:admin@example.com" {
		t.Errorf("%+v", entry)
	}

	// Neither the list nor the database shows what lets anybody send.
	list, err := credentials.List(app)
	if err != nil || len(list) != 2 || list[0].Platform != sender.Expo || !list[0].Facts.Protected || list[1].Facts != entry.Facts {
		t.Fatalf("%+v %v", list, err)
	}
	var stored []string
	if err := app.ConcurrentDB().NewQuery("SELECT platform || data || facts || version FROM " + credentials.Table).Column(&stored); err != nil {
		t.Fatal(err)
	}
	shown, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	for _, hidden := range []string{accessToken, set.WebPush.PrivateKey} {
		if text := strings.Join(stored, "\n") + string(shown); hidden == "" || strings.Contains(text, hidden) {
			t.Errorf("%q is in %s", hidden, text)
		}
	}

	for _, p := range []sender.Platform{sender.WebPush, sender.UnifiedPush, sender.Expo} {
		if s, err := k.Sender(t.Context(), p); err != nil || s == nil {
			t.Errorf("%s: %v", p, err)
		}
	}
	if _, err := k.Sender(t.Context(), sender.APNs); !errors.Is(err, credentials.ErrNotConnected) {
		t.Errorf("apns: %v", err)
	}
	if now, err := k.Current(sender.WebPush); err != nil || *now.WebPush != *set.WebPush {
		t.Errorf("%+v %v", now, err)
	}
}

// Senders are kept until their credentials change, and are used at once when they do.
func TestReplaced(t *testing.T) {
	app := start(t)
	k := keeper(t, app, "root key of the tests")
	save(t, k, app, browsers(t))
	first, err := k.Sender(t.Context(), sender.WebPush)
	if err != nil {
		t.Fatal(err)
	}
	save(t, k, app, credentials.Set{Expo: &expo.Credentials{}})
	if again, err := k.Sender(t.Context(), sender.WebPush); err != nil || again != first {
		t.Errorf("another sender for the same credentials: %v", err)
	}
	save(t, k, app, browsers(t))
	if again, err := k.Sender(t.Context(), sender.WebPush); err != nil || again == first {
		t.Errorf("the old sender for new credentials: %v", err)
	}
	for _, want := range []bool{true, false} {
		if found, err := k.Remove(app, sender.WebPush); err != nil || found != want {
			t.Errorf("remove: %v %v", found, err)
		}
	}
	if _, err := k.Sender(t.Context(), sender.WebPush); !errors.Is(err, credentials.ErrNotConnected) {
		t.Errorf("removed: %v", err)
	}
	if s, err := k.Sender(t.Context(), sender.Expo); err != nil || s == nil {
		t.Errorf("the other: %v", err)
	}

	// What a transaction that is rolled back has saved is not used.
	_ = app.RunInTransaction(func(tx core.App) error {
		save(t, k, tx, browsers(t))
		return errors.New("rolled back")
	})
	if _, err := k.Sender(t.Context(), sender.WebPush); !errors.Is(err, credentials.ErrNotConnected) {
		t.Errorf("rolled back: %v", err)
	}
}

// Another master key, or a sealed value that was moved or changed, is an error that says so, and one platform's does not
// stop another.
func TestWrongKey(t *testing.T) {
	app := start(t)
	save(t, keeper(t, app, "root key of the tests"), app, browsers(t))
	other := keeper(t, app, "another root key")
	save(t, other, app, credentials.Set{Expo: &expo.Credentials{AccessToken: accessToken}})
	if s, err := other.Sender(t.Context(), sender.WebPush); err == nil || errors.Is(err, credentials.ErrNotConnected) || s != nil || !strings.Contains(err.Error(), "webpush") {
		t.Errorf("another key: %v %v", s, err)
	}
	if _, err := other.Current(sender.WebPush); err == nil || errors.Is(err, credentials.ErrNotConnected) {
		t.Errorf("another key: %v", err)
	}
	if s, err := other.Sender(t.Context(), sender.Expo); err != nil || s == nil {
		t.Errorf("the platform that can be read: %v", err)
	}
	if list, err := credentials.List(app); err != nil || len(list) != 2 {
		t.Errorf("the list needs no key: %v %v", list, err)
	}
	_, err := app.NonconcurrentDB().NewQuery(`INSERT OR REPLACE INTO ` + credentials.Table + `
		SELECT 'webpush', data, facts, 'moved', saved FROM ` + credentials.Table + ` WHERE platform = 'expo'`).Execute()
	if err != nil {
		t.Fatal(err)
	}
	if s, err := keeper(t, app, "another root key").Sender(t.Context(), sender.WebPush); err == nil || s != nil {
		t.Error("the value of one platform is read as another's")
	}
}

// What cannot work is refused, and what was there stays.
func TestRefused(t *testing.T) {
	app := start(t)
	k := keeper(t, app, "root key of the tests")
	good := browsers(t)
	save(t, k, app, good)
	for name, s := range map[string]credentials.Set{
		"nothing":         {},
		"apns, no key":    {APNs: &apns.Credentials{KeyID: "ABC123DEFG", TeamID: "DEF123GHIJ", Topic: "com.example.app"}},
		"apns, text":      {APNs: &apns.Credentials{Key: "text", KeyID: "ABC123DEFG", TeamID: "DEF123GHIJ", Topic: "com.example.app"}},
		"fcm, nothing":    {FCM: &fcm.Credentials{}},
		"fcm, no account": {FCM: &fcm.Credentials{Account: `{"type": "authorized_user"}`}},
		"webpush, key":    {WebPush: &webpush.Credentials{PrivateKey: "AAAA", Subject: "mailto:admin@example.com"}},
		"webpush, local":  {WebPush: &webpush.Credentials{PrivateKey: good.WebPush.PrivateKey, Subject: "mailto:admin@localhost"}},
		"expo, lines":     {Expo: &expo.Credentials{AccessToken: "a\nb"}},
	} {
		if _, err := k.Save(app, s); err == nil {
			t.Errorf("%s: saved", name)
		} else if key := good.WebPush.PrivateKey; strings.Contains(err.Error(), key) {
			t.Errorf("%s: the error shows the key", name)
		}
	}
	if list, err := credentials.List(app); err != nil || len(list) != 1 {
		t.Errorf("%+v %v", list, err)
	}
	if now, err := k.Current(sender.WebPush); err != nil || *now.WebPush != *good.WebPush {
		t.Errorf("%+v %v", now, err)
	}
}
