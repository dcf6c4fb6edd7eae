package logs

import (
	"net/url"
	"strings"
	"testing"
)

const (
	hidden = "s3cr3t-v4lue"
	jwt    = "eyJhbGciOiJIUzI1NiJ9.eyJpZCI6ImFiYyJ9.c2lnbmF0dXJl"
)

func TestRedactURL(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"/api/files/c/r/f.png?token=" + hidden, "/api/files/c/r/f.png?token=REDACTED"},
		{"/x?access_token=" + hidden + "&page=2", "/x?access_token=REDACTED&page=2"},
		{"/x?refreshToken=" + hidden, "/x?refreshToken=REDACTED"},
		{"/x?ACCESS-TOKEN=" + hidden, "/x?ACCESS-TOKEN=REDACTED"},
		{"/x?%74oken=" + hidden, "/x?%74oken=REDACTED"},
		{"/x?token[]=" + hidden, "/x?token[]=REDACTED"},
		{"/x?token[0]=" + hidden, "/x?token[0]=REDACTED"},
		{"/cb?code=" + hidden + "&state=" + hidden + "&scope=email", "/cb?code=REDACTED&state=REDACTED&scope=email"},
		{"/cb?page=1;code=" + hidden, "/cb?page=1&code=REDACTED"},
		{"/x?password=" + hidden + "&passwordConfirm=" + hidden + "&oldPassword=" + hidden, "/x?password=REDACTED&passwordConfirm=REDACTED&oldPassword=REDACTED"},
		{"/x?api_key=" + hidden + "&client_secret=" + hidden, "/x?api_key=REDACTED&client_secret=REDACTED"},
		{"/x?X-Amz-Signature=" + hidden + "&X-Amz-Credential=" + hidden, "/x?X-Amz-Signature=REDACTED&X-Amz-Credential=REDACTED"},
		{"/x?otpId=" + hidden + "&mfaId=" + hidden, "/x?otpId=REDACTED&mfaId=REDACTED"},
		{"/x?value=" + jwt, "/x?value=REDACTED"},
		{"/x?value=rt1.abcdef.3.0123456789", "/x?value=REDACTED"},
		{"/x?value=sk_abcdefghij01234_AbC-_0123456789", "/x?value=REDACTED"},
		{"/x?" + jwt, "/x?REDACTED"},
		{"/x?redirect=https%3A%2F%2Fa.example%2F%3Ftoken%3D" + hidden, "/x?redirect=REDACTED"},
		{"/x?redirect=https%253A%252F%252Fa.example%252F%253Fcode%253D" + hidden, "/x?redirect=REDACTED"},
		{"/x?filter=inviteToken%3D%27" + hidden + "%27", "/x?filter=REDACTED"},
		{"/x?filter=password%20~%20%22" + hidden + "%22", "/x?filter=REDACTED"},
		{"/x?bad=%zz" + hidden, "/x?bad=REDACTED"},
		{"/x?%zz" + hidden + "=1", "/x?REDACTED"},
		{"/verify/" + jwt, "/verify/REDACTED"},
		{"/x;token=" + hidden + "/y", "/x;token=REDACTED"},
		{"/x/token%3D" + hidden, "/x/token=REDACTED"},
		{"https://user:" + hidden + "@host.example/a?b=1", "https://REDACTED@host.example/a?b=1"},
		{"https://app.example/#access_token=" + hidden, "https://app.example/"},
		{"https://app.example/?page=1#token=" + hidden, "https://app.example/?page=1"},

		{"", ""},
		{"/", "/"},
		{"/x?", "/x?"},
		{"/api/collections/notes/records?page=2&perPage=30&sort=-updated&expand=owner", "/api/collections/notes/records?page=2&perPage=30&sort=-updated&expand=owner"},
		{"/x?filter=title%20~%20%27plan%27%20%26%26%20done%3Dfalse", "/x?filter=title%20~%20%27plan%27%20%26%26%20done%3Dfalse"},
		{"/x?zipcode=10115&estate=big&monkey=1&keyword=a", "/x?zipcode=10115&estate=big&monkey=1&keyword=a"},
		{"/x?cursor=MTIzNDU2Nzg5MGFiY2RlZg", "/x?cursor=MTIzNDU2Nzg5MGFiY2RlZg"},
	} {
		if got := redactURL(test.in); got != test.want {
			t.Errorf("redactURL(%q)\n got %q\nwant %q", test.in, got, test.want)
		}
	}
}

func TestRedactText(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{`Get "https://h.example/v1?access_token=` + hidden + `&a=1": dial tcp: refused`, `Get "https://h.example/v1?access_token=REDACTED&a=1": dial tcp: refused`},
		{`Post "https://h.example/cb?code=` + hidden + `": EOF`, `Post "https://h.example/cb?code=REDACTED": EOF`},
		{"Authorization: Bearer " + hidden, "Authorization: Bearer REDACTED"},
		{"basic dXNlcjpwYXNz was sent", "basic REDACTED was sent"},
		{`{"token":"` + hidden + `","a":1}`, `{"token":REDACTED,"a":1}`},
		{`{"refreshToken": "` + hidden + `"}`, `{"refreshToken": REDACTED}`},
		{"map[password:" + hidden + " name:ann]", "map[password:REDACTED name:ann]"},
		{"postgres://root:" + hidden + "@db/x", "postgres://REDACTED@db/x"},
		{"invalid token " + jwt, "invalid token REDACTED"},
		{"client_secret=" + hidden, "client_secret=REDACTED"},

		{"password: cannot be blank.", "password: cannot be blank."},
		{"invalid token: it has expired", "invalid token: it has expired"},
		{"state: closed, code = 7", "state: closed, code = 7"},
		{"sql: no rows in result set", "sql: no rows in result set"},
		{"http://127.0.0.1:8090/api", "http://127.0.0.1:8090/api"},
	} {
		if got := redactText(test.in); got != test.want {
			t.Errorf("redactText(%q)\n got %q\nwant %q", test.in, got, test.want)
		}
	}
}

// FuzzRedactURL puts a token under a secret's name into any address: it must not come out, however it is read, and what
// is redacted stays the same when it is redacted again.
func FuzzRedactURL(f *testing.F) {
	for _, s := range []string{"/a?b=c", "/%74?%zz", "a;b&c=d%26token=1", "#?", "https://u@h/x?y"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, before, after string) {
		if strings.ContainsAny(before, "#") || strings.Contains(before+after, hidden) {
			t.Skip()
		}
		in := before + "?x=1&token=" + hidden + "&" + after
		out := redactURL(in)
		for range 3 {
			if strings.Contains(out, hidden) {
				t.Fatalf("redactURL(%q) = %q", in, out)
			}
			plain, err := url.PathUnescape(out)
			if err != nil {
				break
			}
			out = plain
		}
	})
}

func FuzzEscape(f *testing.F) {
	f.Add("a\nb\x1b[31m\u009b\u202e\u2028\U000e0001\xff\x7f")
	f.Fuzz(func(t *testing.T, s string) {
		out := escapeControl(s)
		if i := strings.IndexFunc(out, isUnsafe); i >= 0 {
			t.Fatalf("escapeControl(%q) = %q", s, out)
		}
	})
}
