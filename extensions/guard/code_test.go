package guard

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"golang.org/x/crypto/bcrypt"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

// code makes a one-time password for ann and returns its id.
func (w *world) code(t testing.TB, password string) string {
	t.Helper()
	otp := core.NewOTP(w.App)
	otp.SetCollectionRef(w.ann.Collection().Id)
	otp.SetRecordRef(w.ann.Id)
	otp.SetPassword(password)
	if err := w.Save(otp); err != nil {
		t.Fatal(err)
	}
	return otp.Id
}

func startWithCodes(t testing.TB, change func(*Config)) *world {
	t.Helper()
	w := start(t, func(c *Config) {
		c.Address = 1000
		if change != nil {
			change(c)
		}
	})
	w.change(t, func(c *core.Collection) { c.OTP.Enabled = true })
	return w
}

func (w *world) guess(t testing.TB, i int, otp, password string) apptest.Response {
	t.Helper()
	return w.post(t, fmt.Sprintf("198.51.%d.%d", i/250, i%250), "", "auth-with-otp", map[string]any{"otpId": otp, "password": password})
}

func (w *world) exists(t testing.TB, otp string) bool {
	t.Helper()
	n := 0
	if err := w.DB().Select("count(*)").From(core.CollectionNameOTPs).Where(dbx.HashExp{"id": otp}).Row(&n); err != nil {
		t.Fatal(err)
	}
	return n == 1
}

func TestCodeIsBurned(t *testing.T) {
	w := startWithCodes(t, nil)
	for _, c := range []struct {
		wrong  int
		status int
	}{{0, 200}, {4, 200}, {5, 400}, {8, 400}} {
		otp := w.code(t, "12345678")
		stock := ""
		for i := range c.wrong {
			r := w.guess(t, i, otp, "00000000")
			wantStatus(t, r, http.StatusBadRequest, "api.bad_request")
			if message := r.JSON(t)["message"].(string); stock != "" && message != stock {
				t.Errorf("the answer changes with try %d: %q", i+1, message)
			} else {
				stock = message
			}
		}
		if r := w.guess(t, 99, otp, "12345678"); r.Status != c.status {
			t.Errorf("after %d wrong tries the code answers %d: %s", c.wrong, r.Status, r.Body)
		}
		if w.exists(t, otp) {
			t.Errorf("after %d wrong tries and a right one the code is still there", c.wrong)
		}
	}
	if n := w.count(event{actionBurned, "ok", "ann@example.test"}); n != 2 {
		t.Errorf("%d entries about 2 burned codes", n)
	}
}

// The count is in the database: another process that opens the folder goes on with it.
func TestTriesOutliveARestart(t *testing.T) {
	w := startWithCodes(t, nil)
	otp := w.code(t, "12345678")
	for i := range 3 {
		w.guess(t, i, otp, "00000000")
	}
	next := core.NewBaseApp(core.BaseAppConfig{DataDir: w.DataDir()})
	if err := next.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = next.ClearBootstrap() })
	for want := 4; want <= 5; want++ {
		if n, err := countTry(next, otp, 1); n != want || err != nil {
			t.Fatalf("%d tries (%v), want %d", n, err, want)
		}
	}
	wantStatus(t, w.guess(t, 99, otp, "12345678"), http.StatusBadRequest, "api.bad_request")
}

func (w *world) tries(t testing.TB, otp string) int {
	t.Helper()
	n := 0
	if err := w.DB().Select("tries").From(codesTable).Where(dbx.HashExp{"otp": digest(otp)}).Row(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestParallelTries(t *testing.T) {
	w := startWithCodes(t, nil)
	otp := w.code(t, "12345678")
	var compared atomic.Int64
	w.watch(&compared)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if r := w.guess(t, i, otp, "00000000"); r.Status != http.StatusBadRequest {
				t.Errorf("status %d: %s", r.Status, r.Body)
			}
		})
	}
	wg.Wait()
	if n := compared.Load(); n > maxTries {
		t.Errorf("the code was looked at %d times", n)
	}
	if n := w.tries(t, otp); n != 50 {
		t.Errorf("%d tries were counted, want 50", n)
	}
	if w.exists(t, otp) {
		t.Error("the code is still there")
	}
}

// watch counts the requests that pass the guard towards PocketBase's handler.
func (w *world) watch(n *atomic.Int64) { w.passed.Store(n) }

// However tries, codes, addresses and restarts of the counters are mixed, a code is looked at five times at most.
func TestNoMoreThanFiveTriesEver(t *testing.T) {
	for seed := range uint64(2) {
		w := startWithCodes(t, nil)
		random := rand.New(rand.NewPCG(seed, 1))
		codes := make([]string, 4)
		for i := range codes {
			codes[i] = w.code(t, "12345678")
		}
		codes = append(codes, core.GenerateDefaultRandomId())
		passed := map[string]*atomic.Int64{}
		for _, c := range codes {
			passed[c] = &atomic.Int64{}
		}
		for step := range 40 {
			c := codes[random.IntN(len(codes))]
			w.watch(passed[c])
			forms := []any{
				map[string]any{"otpId": c, "password": "0000"},
				map[string]any{"password": "1", "otpId": c, "x": 1},
				`{"otpId":"` + c + `","password":"1"} {"otpId":"another"}`,
				map[string]any{"otpId": c, "password": ""},
			}
			r := w.post(t, fmt.Sprintf("203.0.%d.%d", seed, random.IntN(250)), "", "auth-with-otp", forms[random.IntN(len(forms))])
			if r.Status != http.StatusBadRequest {
				t.Fatalf("step %d: %d %s", step, r.Status, r.Body)
			}
		}
		for c, n := range passed {
			if n.Load() > maxTries {
				t.Errorf("seed %d: code %s was looked at %d times", seed, c, n.Load())
			}
		}
	}
}

// Codes of accounts that do not exist end like others, answer like others and cost a hash like others.
func TestUnknownCodesAnswerAlike(t *testing.T) {
	w := startWithCodes(t, nil)
	w.change(t, func(c *core.Collection) { c.OTP.Duration = 3600 })
	ask := func(email string, i int) (id string) {
		t.Helper()
		r := w.post(t, fmt.Sprintf("203.0.113.%d", i), "", "request-otp", map[string]any{"email": email})
		if r.Status != http.StatusOK {
			t.Fatalf("request %d: %d %s", i, r.Status, r.Body)
		}
		id, _ = r.JSON(t)["otpId"].(string)
		return id
	}
	seen := map[string]bool{}
	for i := range 15 { // PocketBase repeats the id of an account that exists from the tenth on
		known, unknown := ask("ann@example.test", i), ask("nobody@example.test", i)
		if len(known) != len(unknown) || seen[known] || seen[unknown] {
			t.Fatalf("request %d: ids %q and %q", i, known, unknown)
		}
		seen[known], seen[unknown] = true, true
		if i%7 != 0 {
			continue
		}
		for try := range 7 { // from one address, where PocketBase's own limit would speak up
			same := func(otp string) string {
				body := w.guess(t, 1, otp, "00000000").JSON(t)
				delete(body, "requestId")
				return fmt.Sprint(body)
			}
			if a, b := same(known), same(unknown); a != b {
				t.Fatalf("try %d: known %s, unknown %s", try, a, b)
			}
		}
	}
	w.mailbox(t, 15)
	if !bcryptMatches("decoy") {
		t.Error("the decoy is not a hash of bcrypt")
	}
	codes, err := w.FindCollectionByNameOrId(core.CollectionNameOTPs)
	if err != nil {
		t.Fatal(err)
	}
	cost, err := bcrypt.Cost([]byte(decoyHash))
	if field := codes.Fields.GetByName("password").(*core.PasswordField); err != nil || field.Cost != cost {
		t.Errorf("the decoy costs %d, a code %d (%v)", cost, field.Cost, err)
	}
}

func bcryptMatches(password string) bool {
	return core.PasswordFieldValue{Hash: decoyHash}.Validate(password)
}

// A code is an attempt: an account cannot be guessed at with many codes, and whoever asks sees no difference.
func TestRequestsForCodesCount(t *testing.T) {
	for _, email := range []string{"ann@example.test", "nobody@example.test"} {
		w := startWithCodes(t, func(c *Config) { c.Account = 3 })
		ask := func(i int, device string) apptest.Response {
			return w.post(t, fmt.Sprintf("203.0.113.%d", i), device, "request-otp", map[string]any{"email": email})
		}
		for i := range 3 {
			wantStatus(t, ask(i, ""), http.StatusOK, "")
		}
		wantStatus(t, ask(9, ""), http.StatusTooManyRequests, tooMany)
		wantStatus(t, w.signIn(t, "203.0.113.9", "", email, "wrong"), http.StatusTooManyRequests, tooMany)
		if email == "ann@example.test" {
			wantStatus(t, ask(9, phone), http.StatusOK, "")
		}
	}
}

// Whoever signs in with the codes he asks for is never held up.
func TestUsedCodesDoNotCount(t *testing.T) {
	w := startWithCodes(t, func(c *Config) { c.Account, c.Pair, c.Address = 2, 2, 2 })
	passwords := make(chan string, 1)
	w.OnMailerRecordOTPSend().BindFunc(func(e *core.MailerRecordEvent) error {
		passwords <- e.Meta["password"].(string)
		return e.Next()
	})
	for range 5 { // PocketBase allows no more in three minutes
		r := w.post(t, "192.0.2.1", "", "request-otp", map[string]any{"email": "ann@example.test"})
		wantStatus(t, r, http.StatusOK, "")
		r = w.post(t, "192.0.2.1", "", "auth-with-otp", map[string]any{"otpId": r.JSON(t)["otpId"], "password": <-passwords})
		wantStatus(t, r, http.StatusOK, "")
	}
}

func TestPurge(t *testing.T) {
	w := startWithCodes(t, nil)
	g := &guard{host: w.Host}
	old := w.code(t, "12345678")
	w.guess(t, 1, old, "1")
	if _, err := w.NonconcurrentDB().Update(codesTable, dbx.Params{"seen": time.Now().Add(-48 * time.Hour).Unix()}, nil).Execute(); err != nil {
		t.Fatal(err)
	}
	fresh := w.code(t, "12345678")
	w.guess(t, 1, fresh, "1")
	g.purge()
	var left [][]byte
	if err := w.DB().Select("otp").From(codesTable).Column(&left); err != nil || len(left) != 1 || string(left[0]) != string(digest(fresh)) {
		t.Errorf("left %x (%v)", left, err)
	}
}
