package inbox_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/satchelbase/satchel/extensions/internal/stubs/inbox"
)

func do(t *testing.T, box *inbox.Inbox, method, path, host string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequest(method, path, nil)
	r.Host = host
	box.Handler().ServeHTTP(w, r)
	return w
}

func TestInbox(t *testing.T) {
	box := &inbox.Inbox{}
	for i := range inbox.Size + 10 {
		box.Add(inbox.Arrival{Provider: "mail", Title: "<script>" + strconv.Itoa(i), Status: 250, Body: strings.Repeat("x", 100_000)})
	}
	box.Add(inbox.Arrival{Provider: "apns", Title: "Hello", Status: 410, Reason: "Unregistered"})
	if n := len(box.List("")); n != inbox.Size {
		t.Errorf("%d are kept", n)
	}
	page := do(t, box, http.MethodGet, "/", "127.0.0.1:9410").Body.String()
	if strings.Contains(page, "<script>") || !strings.Contains(page, "410 Unregistered") || strings.Index(page, "apns") > strings.Index(page, "mail") {
		t.Error("the page is not as it should be")
	}
	var list []inbox.Arrival
	w := do(t, box, http.MethodGet, "/arrivals?provider=apns", "localhost")
	if err := json.Unmarshal(w.Body.Bytes(), &list); err != nil || len(list) != 1 || list[0].Title != "Hello" {
		t.Errorf("arrivals %s, %v", w.Body, err)
	}
	for _, host := range []string{"evil.example:9410", "10.0.0.1", "localhost.evil.example"} {
		if w := do(t, box, http.MethodGet, "/arrivals", host); w.Code != http.StatusMisdirectedRequest || strings.Contains(w.Body.String(), "Hello") {
			t.Errorf("%s: %d", host, w.Code)
		}
	}
	if w := do(t, box, http.MethodDelete, "/arrivals", "[::1]:9410"); w.Code != http.StatusNoContent || len(box.List("")) != 0 {
		t.Errorf("%d, %d are left", w.Code, len(box.List("")))
	}
	var none *inbox.Inbox
	if none.Add(inbox.Arrival{}); none.List("") != nil {
		t.Error("nothing keeps something")
	}
}
