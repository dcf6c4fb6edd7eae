package ratelimit

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/pocketbase/pocketbase/tools/router"
)

const formType = "application/x-www-form-urlencoded"

func post(contentType, query, body string) *http.Request {
	r, err := http.NewRequest(http.MethodPost, "/api/collections/users/auth-with-password"+query, strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	r.Header.Set("Content-Type", contentType)
	r.Body = &router.RereadableReadCloser{ReadCloser: r.Body}
	return r
}

func TestBodyField(t *testing.T) {
	multipart := "--b\r\nContent-Disposition: form-data; name=\"identity\"\r\n\r\nann\r\n--b--\r\n"
	for _, c := range []struct{ name, contentType, query, body, want string }{
		{"json", "application/json", "", `{"password":"x","identity":"ann"}`, "ann"},
		{"json with charset", "application/json; charset=utf-8", "", `{"identity":"ann"}`, "ann"},
		{"json with trailing garbage", "application/json", "", `{"identity":"ann"} {"identity":"bob"}`, "ann"},
		{"json nested", "application/json", "", `{"data":{"identity":"ann"}}`, ""},
		{"json in another case", "application/json", "", `{"Identity":"ann"}`, ""},
		{"json twice", "application/json", "", `{"identity":"ann","identity":"bob"}`, ""},
		{"json number", "application/json", "", `{"identity":12}`, ""},
		{"json array", "application/json", "", `["identity"]`, ""},
		{"json cut off", "application/json", "", `{"identity":"ann",`, ""},
		{"json does not read the query", "application/json", "?identity=ann", `{}`, ""},
		{"json deep", "application/json", "", `{"identity":` + strings.Repeat("[", 20_000), ""},
		{"form", formType, "", "identity=ann&password=x", "ann"},
		{"form number", formType, "", "identity=0012", "0012"},
		{"form twice", formType, "", "identity=ann&identity=bob", "ann"},
		{"form in the query", formType, "?identity=ann", "password=x", "ann"},
		{"form before the query", formType, "?identity=bob", "identity=ann", "ann"},
		{"form with payload", formType, "", `identity=ann&@jsonPayload={"identity":"bob"}`, ""},
		{"form malformed", formType, "", "identity=%zz", ""},
		{"multipart", "multipart/form-data; boundary=b", "", multipart, "ann"},
		{"multipart cut off", "multipart/form-data; boundary=b", "", multipart[:40], ""},
		{"multipart without boundary", "multipart/form-data", "", multipart, ""},
		{"xml", "text/xml", "", "<x><Identity>ann</Identity></x>", ""},
		{"no type", "", "", `{"identity":"ann"}`, ""},
		{"empty", "application/json", "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := bodyField(post(c.contentType, c.query, c.body), []byte(c.body), "identity"); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestPeekBodyLeavesTheBodyWhole(t *testing.T) {
	for _, size := range []int{0, 1, maxSignInBody - 1, maxSignInBody, maxSignInBody + 1, 3 * maxSignInBody} {
		want := bytes.Repeat([]byte("0123456789abcdef!"), size/17+1)[:size]
		r := post("application/json", "", string(want))
		head, whole := peekBody(r, maxSignInBody)
		if whole != (size <= maxSignInBody) || !bytes.HasPrefix(want, head) || whole && len(head) != size {
			t.Fatalf("size %d: peeked %d bytes, whole %v", size, len(head), whole)
		}
		for range 2 { // handlers may read it several times
			got, err := io.ReadAll(r.Body)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("size %d: the handler reads %d bytes, %v", size, len(got), err)
			}
		}
		if err := r.Body.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPeekBodyKeepsReadErrors(t *testing.T) {
	r := post("application/json", "", "")
	r.Body = io.NopCloser(io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(io.ErrUnexpectedEOF)))
	if _, whole := peekBody(r, 100); whole {
		t.Error("a body that broke off counts as whole")
	}
	got, err := io.ReadAll(r.Body)
	if string(got) != "abc" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the handler reads %q, %v", got, err)
	}
}

// FuzzBodyField compares with what PocketBase's handler makes of the same body: it must never sign in an account that
// the limiter took for another.
func FuzzBodyField(f *testing.F) {
	f.Add("application/json", "", []byte(`{"identity":"ann","password":"x"}`))
	f.Add("application/json", "", []byte(`{"identity":"ann","I_dentity":"bob"}`))
	f.Add("application/json", "", []byte(`{"x":1,"X":2,"ident-ity":"bob"}`))
	f.Add(formType, "identity=bob", []byte("identity=ann"))
	f.Add(formType, "", []byte(`identity=ann&@jsonPayload={"identity":"bob"}`))
	f.Add("multipart/form-data; boundary=b", "", []byte("--b\r\nContent-Disposition: form-data; name=\"identity\"\r\n\r\nann\r\n--b--\r\n"))
	f.Add("text/xml", "", []byte("<x><Identity>ann</Identity></x>"))
	f.Fuzz(func(t *testing.T, contentType, query string, body []byte) {
		r := post(contentType, "", string(body))
		r.URL.RawQuery = query
		got := bodyField(r, body, "identity")
		form := struct {
			Identity string `form:"identity" json:"identity"`
			Password string `form:"password" json:"password"`
		}{}
		if err := (&router.Event{Request: r}).BindBody(&form); err != nil {
			return
		}
		if got != "" && got != form.Identity {
			t.Errorf("limiter reads %q, PocketBase %q", got, form.Identity)
		}
	})
}
