package guard

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

// BenchmarkAnswers shows the median time of each answer for an account that exists and for one that does not, for people
// to compare: on a busy machine a test of it would fail by chance.
func BenchmarkAnswers(b *testing.B) {
	const known, unknown = "ann@example.test", "nobody@example.test"
	for _, c := range []struct {
		name string
		ask  func(w *world, i int, token, email string) apptest.Response
	}{
		{"auth-with-password", func(w *world, i int, _, email string) apptest.Response {
			return w.signIn(b, octets(i), "", email, "wrong")
		}},
		{"request-otp", func(w *world, i int, _, email string) apptest.Response {
			return w.post(b, octets(i), "", "request-otp", map[string]any{"email": email})
		}},
		{"auth-with-otp", func(w *world, i int, _, email string) apptest.Response {
			otp := core.GenerateDefaultRandomId()
			if email == known {
				otp = w.spare[i]
			}
			return w.guess(b, i, otp, "00000000")
		}},
		{"sign-up", func(w *world, i int, _, email string) apptest.Response {
			if email == unknown {
				email = fmt.Sprintf("new%d@example.test", i)
			}
			return w.signUpAt(b, bothPaths[0], sheet(email))
		}},
		{"request-email-change", func(w *world, _ int, token, email string) apptest.Response {
			return w.Do(b, apptest.Request{
				Method: http.MethodPost, Path: "/api/collections/users/request-email-change", Token: token, Body: map[string]any{"newEmail": email},
			})
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			w := startWithCodes(b, func(c *Config) { c.Account, c.Pair, c.Address = maxLimit, maxLimit, maxLimit })
			w.sent = make(chan struct{}, 1<<20)
			w.change(b, func(c *core.Collection) { c.Fields.GetByName("password").(*core.PasswordField).Cost = 10 })
			ann, err := w.FindRecordById("users", w.ann.Id)
			if err != nil {
				b.Fatal(err)
			}
			ann.SetPassword(apptest.Password)
			if err := w.Save(ann); err != nil {
				b.Fatal(err)
			}
			_, token := w.User(b, "bob@example.test")
			for range b.N {
				w.spare = append(w.spare, w.code(b, "12345678"))
			}
			var times [2][]time.Duration
			b.ResetTimer()
			for i := range b.N {
				for side, email := range []string{known, unknown} {
					begun := time.Now()
					c.ask(w, i, token, email)
					times[side] = append(times[side], time.Since(begun))
				}
			}
			for side, unit := range []string{"known-µs", "unknown-µs"} {
				slices.Sort(times[side])
				b.ReportMetric(float64(times[side][len(times[side])/2].Microseconds()), unit)
			}
		})
	}
}

func octets(i int) string { return fmt.Sprintf("10.%d.%d.%d", i>>16&255, i>>8&255, i&255) }
