package records

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

const postsPath = "/api/v1/records/posts"

// answer is a list as a client reads it.
type answer struct {
	Success    bool              `json:"success"`
	Data       []json.RawMessage `json:"data"`
	Pagination struct {
		Limit      int     `json:"limit"`
		HasNext    bool    `json:"hasNext"`
		NextCursor *string `json:"nextCursor"`
		Total      *int    `json:"total"`
	} `json:"pagination"`
	RequestID string `json:"requestId"`
}

func list(t testing.TB, app *apptest.App, token, path string) answer {
	t.Helper()
	r := app.Do(t, apptest.Request{Path: path, Token: token})
	if r.Status != http.StatusOK {
		t.Fatalf("GET %s: %d %s", path, r.Status, r.Body)
	}
	var a answer
	if err := json.Unmarshal(r.Body, &a); err != nil {
		t.Fatal(err)
	}
	return a
}

// walk follows the cursors to the end and returns the ids.
func walk(t testing.TB, app *apptest.App, token, path string, pairs ...string) []string {
	t.Helper()
	var ids []string
	for cursor := ""; ; {
		q := pairs
		if cursor != "" {
			q = append(slices.Clone(pairs), "cursor", cursor)
		}
		a := list(t, app, token, path+"?"+queryOf(q...))
		for _, raw := range a.Data {
			var r struct {
				ID string `json:"id"`
			}
			if err := json.Unmarshal(raw, &r); err != nil {
				t.Fatal(err)
			}
			ids = append(ids, r.ID)
		}
		if a.Pagination.HasNext != (a.Pagination.NextCursor != nil) {
			t.Fatalf("hasNext and nextCursor disagree: %+v", a.Pagination)
		}
		if !a.Pagination.HasNext {
			return ids
		}
		cursor = *a.Pagination.NextCursor
	}
}

func TestListParameters(t *testing.T) {
	app := start(t)
	p := populate(t, app, 40)
	cases := []struct {
		name, path, token string
		status            int
		code              string
		contains          []string
		notContains       []string
	}{
		{name: "defaults", path: postsPath, token: p.rootToken, status: 200, contains: []string{`"limit":25,"hasNext":true,"nextCursor":"`, `"success":true`}, notContains: []string{`"total"`}},
		{name: "end", path: postsPath + "?limit=100", token: p.rootToken, status: 200, contains: []string{`"limit":100,"hasNext":false,"nextCursor":null`}},
		{name: "exactly full", path: postsPath + "?limit=40", token: p.rootToken, status: 200, contains: []string{`"hasNext":false`}},
		{name: "total", path: postsPath + "?limit=1&total=true", token: p.rootToken, status: 200, contains: []string{`"total":40`}},
		{name: "total under a rule with joins", path: postsPath + "?limit=1&total=true", token: p.annToken, status: 200, contains: []string{`"total":20`}},
		{name: "total with a filter", path: postsPath + "?total=true&" + queryOf("filter", "n = 1"), token: p.rootToken, status: 200, contains: []string{`"total":4`}},
		{name: "total of nothing", path: "/api/v1/records/teams?total=true", status: 200, contains: []string{`"data":[]`, `"total":0`}},
		{name: "total false", path: postsPath + "?total=false", status: 200, notContains: []string{`"total"`}},
		{name: "unknown parameter", path: postsPath + "?page=7&perPage=x", token: p.rootToken, status: 200},
		{name: "total is no boolean", path: postsPath + "?total=yes", status: 400, code: "records.total_invalid"},
		{name: "limit zero", path: postsPath + "?limit=0", status: 400, code: "records.limit_invalid", contains: []string{"from 1 to 100"}},
		{name: "limit negative", path: postsPath + "?limit=-1", status: 400, code: "records.limit_invalid"},
		{name: "limit too large", path: postsPath + "?limit=101", status: 400, code: "records.limit_invalid"},
		{name: "limit is no number", path: postsPath + "?limit=ten", status: 400, code: "records.limit_invalid"},
		{name: "limit empty", path: postsPath + "?limit=", status: 400, code: "records.limit_invalid"},
		{name: "query malformed", path: postsPath + "?limit=%zz", status: 400, code: "api.bad_request"},

		{name: "cursor garbage", path: postsPath + "?cursor=abc", token: p.rootToken, status: 400, code: "records.cursor_invalid"},
		{name: "cursor of another alphabet", path: postsPath + "?cursor=%00%ff", token: p.rootToken, status: 400, code: "records.cursor_invalid"},

		{name: "filter", path: postsPath + "?" + queryOf("filter", "title = 'Title 3' && done = true"), token: p.rootToken, status: 200, contains: []string{`"title":"Title 3"`}, notContains: []string{`"title":"Title 4"`}},
		{name: "filter syntax", path: postsPath + "?" + queryOf("filter", "title ="), status: 400, code: "records.filter_invalid"},
		{name: "filter unknown field", path: postsPath + "?" + queryOf("filter", "nope = 1"), status: 400, code: "records.filter_invalid", contains: []string{"nope"}},
		{name: "filter hidden field", path: postsPath + "?" + queryOf("filter", "secret = 's1'"), token: p.annToken, status: 400, code: "records.filter_invalid", notContains: []string{"non-filterable"}},
		{name: "filter hidden field as superuser", path: postsPath + "?" + queryOf("filter", "secret = 's1'"), token: p.rootToken, status: 200, contains: []string{`"secret":"s1"`}},
		{name: "filter too long", path: postsPath + "?" + queryOf("filter", "title = '"+strings.Repeat("x", 3500)+"'"), status: 400, code: "records.filter_invalid", contains: []string{"3500"}},
		{name: "filter with too many expressions", path: postsPath + "?" + queryOf("filter", strings.Repeat("n=1||", 200)+"n=1"), status: 400, code: "records.filter_invalid"},
		{name: "filter that SQLite refuses", path: postsPath + "?" + queryOf("filter", "meta.a#b = 1"), token: p.rootToken, status: 400, code: "records.filter_invalid"},
		{name: "filter through a collection for superusers", path: "/api/v1/records/comments?" + queryOf("filter", "plain.title = 'x'"), status: 400, code: "records.filter_invalid"},
		{name: "filter @request", path: postsPath + "?" + queryOf("filter", "@request.auth.id = ''"), token: p.annToken, status: 403, code: "api.forbidden"},
		{name: "filter @collection", path: postsPath + "?" + queryOf("filter", "@collection.plain.title = ''"), status: 403, code: "api.forbidden"},
		{name: "filter @collection as superuser", path: postsPath + "?" + queryOf("filter", "@collection.posts.id ?= id"), token: p.rootToken, status: 200},
		{name: "sort @request", path: postsPath + "?sort=@request.auth.id", status: 403, code: "api.forbidden"},

		{name: "sort unindexed", path: postsPath + "?sort=-link", status: 400, code: "records.sort_unsupported", contains: []string{"CREATE INDEX idx_posts_link ON posts (link, id)"}},
		{name: "sort unindexed as superuser", path: postsPath + "?sort=link,-n", token: p.rootToken, status: 400, code: "records.sort_unsupported", contains: []string{"(link, n DESC, id)"}},
		{name: "sort in directions that the index does not have", path: postsPath + "?sort=kind,n", status: 400, code: "records.sort_unsupported", contains: []string{"CREATE INDEX idx_posts_kind_n ON posts (kind, n, id)"}},
		{name: "sort by the second column", path: postsPath + "?sort=updated", token: p.rootToken, status: 400, code: "records.sort_unsupported"},
		{name: "sort after an equality", path: postsPath + "?" + queryOf("sort", "updated", "filter", "owner='x'"), token: p.rootToken, status: 200},
		{name: "sort after an alternative", path: postsPath + "?" + queryOf("sort", "updated", "filter", "owner='x'||owner='y'"), token: p.rootToken, status: 400, code: "records.sort_unsupported"},
		{name: "sort by a partial index", path: postsPath + "?sort=rank", status: 400, code: "records.sort_unsupported"},
		{name: "sort by an expression index", path: postsPath + "?sort=mail", status: 400, code: "records.sort_unsupported"},
		{name: "sort @random", path: postsPath + "?sort=@random", token: p.rootToken, status: 400, code: "records.sort_unsupported"},
		{name: "sort @rowid", path: postsPath + "?sort=@rowid", token: p.rootToken, status: 400, code: "records.sort_unsupported"},
		{name: "sort by a path", path: postsPath + "?sort=owner.name", status: 400, code: "records.sort_unsupported"},
		{name: "sort by a JSON path", path: postsPath + "?sort=meta.i", status: 400, code: "records.sort_unsupported"},
		{name: "sort by JSON", path: postsPath + "?sort=meta", status: 400, code: "records.sort_unsupported"},
		{name: "sort by several values", path: postsPath + "?sort=tags", token: p.rootToken, status: 400, code: "records.sort_unsupported"},
		{name: "sort by a function", path: postsPath + "?sort=geoDistance(place.lon,place.lat,1,1)", status: 400, code: "records.sort_unsupported"},
		{name: "sort by a hidden field", path: postsPath + "?sort=secret", token: p.annToken, status: 400, code: "records.sort_unsupported"},
		{name: "sort by a hidden field as superuser", path: postsPath + "?sort=secret", token: p.rootToken, status: 200},
		{name: "sort by an unknown field", path: postsPath + "?sort=nope", status: 400, code: "records.sort_unsupported"},
		{name: "sort by nothing", path: postsPath + "?sort=n,", status: 400, code: "records.sort_unsupported"},
		{name: "sort by too many", path: postsPath + "?sort=a,b,c,d,e,f,g,h,i", status: 400, code: "records.sort_unsupported"},
		{name: "sort by a long name", path: postsPath + "?sort=" + strings.Repeat("a", 256), status: 400, code: "records.sort_unsupported"},
		{name: "sort a view by id", path: "/api/v1/records/digest?sort=-id&total=true", status: 200, contains: []string{`"total":40`}},
		{name: "sort a view by a field", path: "/api/v1/records/digest?sort=title", status: 400, code: "records.sort_unsupported"},

		{name: "expand", path: "/api/v1/records/comments?limit=1&expand=post.owner", token: p.rootToken, status: 200, contains: []string{`"expand":{"post":{`}},
		{name: "expand back", path: postsPath + "?limit=2&expand=comments_via_post&sort=id", token: p.rootToken, status: 200, contains: []string{`"expand":{`}},
		{name: "expand no relation", path: postsPath + "?expand=title", status: 400, code: "records.expand_invalid", contains: []string{"title"}},
		{name: "expand unknown", path: postsPath + "?expand=owner,nope", status: 400, code: "records.expand_invalid"},
		{name: "expand unknown below", path: "/api/v1/records/comments?expand=post.nope", status: 400, code: "records.expand_invalid"},
		{name: "expand back from elsewhere", path: postsPath + "?expand=posts_via_owner", status: 400, code: "records.expand_invalid"},
		{name: "expand too deep", path: "/api/v1/records/comments?expand=" + strings.Repeat("post.comments_via_post.", 4) + "post", status: 400, code: "records.expand_invalid"},

		{name: "fields", path: postsPath + "?limit=1&fields=id,title", token: p.rootToken, status: 200, contains: []string{`"data":[{"id":"`, `"title":"Title `}, notContains: []string{`"body"`, `"collectionId"`}},
		{name: "fields of unknown names", path: postsPath + "?limit=1&fields=nope", token: p.rootToken, status: 200, contains: []string{`"data":[{}]`}},
		{name: "fields with a wildcard", path: postsPath + "?limit=1&fields=*,expand.owner.name&expand=owner", token: p.rootToken, status: 200, contains: []string{`"body"`}},
		{name: "fields with an excerpt", path: postsPath + "?limit=1&fields=" + queryOf("", "body:excerpt(3,true)")[1:], token: p.rootToken, status: 200, contains: []string{`"data":[{"body":"a \u0026..."}]`}},
		{name: "fields of an expand", path: "/api/v1/records/comments?limit=1&fields=id,expand.post.title&expand=post", token: p.rootToken, status: 200, contains: []string{`"expand":{"post":{"title":`}, notContains: []string{`"text"`}},
		{name: "fields with an unknown modifier", path: postsPath + "?fields=title:upper", status: 400, code: "records.fields_invalid"},
		{name: "fields with bad arguments", path: postsPath + "?fields=title:excerpt()", status: 400, code: "records.fields_invalid"},

		{name: "unknown collection", path: "/api/v1/records/nope", status: 404, code: "api.not_found"},
		{name: "collection for superusers", path: "/api/v1/records/plain", token: p.annToken, status: 403, code: "api.forbidden"},
		{name: "collection for superusers as superuser", path: "/api/v1/records/plain", token: p.rootToken, status: 200, contains: []string{`"data":[]`}},
		{name: "collection by id", path: "/api/v1/records/" + collection(t, app, "posts").Id, token: p.rootToken, status: 200, contains: []string{`"title"`}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := app.Do(t, apptest.Request{Path: c.path, Token: c.token})
			if r.Status != c.status || r.Code() != c.code {
				t.Fatalf("%d %q, want %d %q: %s", r.Status, r.Code(), c.status, c.code, cut(r.Body))
			}
			body := strings.ReplaceAll(string(r.Body), "&", `\u0026`)
			for _, want := range c.contains {
				if !strings.Contains(body, want) {
					t.Errorf("no %q in %s", want, cut([]byte(body)))
				}
			}
			for _, bad := range c.notContains {
				if strings.Contains(body, bad) {
					t.Errorf("%q in %s", bad, cut([]byte(body)))
				}
			}
		})
	}
}

// cut keeps failures readable.
func cut(body []byte) string {
	return string(body[:min(len(body), 500)])
}

func TestDefaultOrder(t *testing.T) {
	app := start(t)
	p := populate(t, app, 30)
	if got, want := walk(t, app, p.rootToken, postsPath, "limit", "7"), walk(t, app, p.rootToken, postsPath, "sort", "-created"); !slices.Equal(got, want) {
		t.Errorf("with an indexed created: %v, want %v", got, want)
	}
	if got, want := walk(t, app, p.rootToken, "/api/v1/records/comments", "limit", "7"), walk(t, app, p.rootToken, "/api/v1/records/comments", "sort", "id"); !slices.Equal(got, want) {
		t.Errorf("without: %v, want %v", got, want)
	}
}

func TestCursorBelongsToItsList(t *testing.T) {
	app := start(t)
	p := populate(t, app, 30)
	base := []string{"sort", "title", "filter", "n > 0", "limit", "5"}
	cursor := *list(t, app, p.rootToken, postsPath+"?"+queryOf(base...)).Pagination.NextCursor
	use := func(path string, pairs ...string) apptest.Response {
		t.Helper()
		return app.Do(t, apptest.Request{Path: path + "?" + queryOf(append(pairs, "cursor", cursor)...), Token: p.rootToken})
	}
	if r := use(postsPath, base...); r.Status != 200 {
		t.Fatalf("own list: %d %s", r.Status, r.Body)
	}
	if r := use(postsPath, "sort", "title", "filter", "n > 0", "limit", "6", "fields", "id", "total", "true"); r.Status != 200 {
		t.Errorf("limit, fields and total may change: %d %s", r.Status, r.Body)
	}
	for name, r := range map[string]apptest.Response{
		"other filter":     use(postsPath, "sort", "title", "filter", "n > 1"),
		"other sort":       use(postsPath, "sort", "-title", "filter", "n > 0"),
		"no filter":        use(postsPath, "sort", "title"),
		"other collection": use("/api/v1/records/comments"),
	} {
		if r.Code() != ErrCursor.Name {
			t.Errorf("%s: %d %s", name, r.Status, r.Body)
		}
	}
	for i := range cursor {
		flipped := []byte(cursor)
		flipped[i] ^= 1
		r := app.Do(t, apptest.Request{Path: postsPath + "?" + queryOf(append(base, "cursor", string(flipped))...), Token: p.rootToken})
		if r.Code() != ErrCursor.Name {
			t.Fatalf("byte %d changed: %d %s", i, r.Status, r.Body)
		}
	}

	posts := collection(t, app, "posts")
	posts.Fields.RemoveByName("title")
	posts.RemoveIndex("idx_posts_title")
	posts.RemoveIndex("idx_posts_due")
	posts.Fields.Add(&core.NumberField{Name: "title"})
	posts.AddIndex("idx_posts_title", false, "title, id", "")
	digest := collection(t, app, "digest")
	if err := app.Delete(digest); err != nil {
		t.Fatal(err)
	}
	save(t, app, posts)
	if r := use(postsPath, base...); r.Code() != ErrCursor.Name {
		t.Errorf("after the field changed its type: %d %s", r.Status, r.Body)
	}
}

func TestListIsConditional(t *testing.T) {
	app := start(t)
	p := populate(t, app, 30)
	r := app.Do(t, apptest.Request{Path: postsPath + "?limit=5", Token: p.annToken})
	etag := r.Header.Get("ETag")
	if !strings.HasPrefix(etag, `W/"`) {
		t.Fatalf("ETag %q", etag)
	}
	again := app.Do(t, apptest.Request{Path: postsPath + "?limit=5", Token: p.annToken, Header: map[string]string{"If-None-Match": etag}})
	if again.Status != http.StatusNotModified || len(again.Body) > 0 {
		t.Errorf("unchanged: %d %s", again.Status, again.Body)
	}
	create(t, app, "posts", map[string]any{"title": "new", "owner": p.ann.Id})
	changed := app.Do(t, apptest.Request{Path: postsPath + "?limit=5", Token: p.annToken, Header: map[string]string{"If-None-Match": etag}})
	if changed.Status != http.StatusOK {
		t.Errorf("changed: %d", changed.Status)
	}
	head := app.Do(t, apptest.Request{Method: http.MethodHead, Path: postsPath + "?limit=5", Token: p.annToken})
	if head.Status != http.StatusOK || len(head.Body) > 0 {
		t.Errorf("HEAD: %d %s", head.Status, head.Body)
	}
}

// A sort value that the viewer must not see must not be readable in the cursor.
func TestCursorIsOpaque(t *testing.T) {
	app := start(t)
	p := populate(t, app, 0)
	for i := range 5 {
		create(t, app, "posts", map[string]any{"secret": fmt.Sprint("confidential", i), "owner": p.ann.Id})
	}
	a := list(t, app, p.rootToken, postsPath+"?limit=3&sort=secret")
	b := list(t, app, p.rootToken, postsPath+"?limit=3&sort=secret")
	if *a.Pagination.NextCursor != *b.Pagination.NextCursor {
		t.Error("the same page has two cursors, so its ETag never matches")
	}
	if strings.Contains(decoded(t, *a.Pagination.NextCursor), "confidential") {
		t.Error("the cursor shows the sort value")
	}
}

func TestSortValueTooLong(t *testing.T) {
	app := start(t)
	p := populate(t, app, 0)
	for range 3 {
		create(t, app, "posts", map[string]any{"title": strings.Repeat("long ", 600), "owner": p.ann.Id})
	}
	r := app.Do(t, apptest.Request{Path: postsPath + "?sort=title&limit=2", Token: p.annToken})
	if r.Code() != ErrSort.Name || !strings.Contains(string(r.Body), "2048 bytes") {
		t.Errorf("%d %s", r.Status, r.Body)
	}
}

func TestEmptyListsAreSlowedDown(t *testing.T) {
	app := start(t)
	p := populate(t, app, 3)
	posts := collection(t, app, "posts")
	x := &throttle{}
	r := &reader{cfg: Config{LimitDefault: 25, LimitMax: 100}, secret: &secret{}, throttle: x}
	ask := func(filter string, auth *core.Record, found int) int {
		e := &core.RecordsListRequestEvent{RequestEvent: event(t, app, auth, "/"), Records: make([]*core.Record, found)}
		e.Collection = posts
		r.slowDown(e, filter)
		n := 0
		for _, count := range x.counts {
			n += count
		}
		return n
	}
	root, err := app.FindAuthRecordByToken(p.rootToken)
	if err != nil {
		t.Fatal(err)
	}
	if n := ask("", p.ann, 0) + ask("n=1", p.ann, 2) + ask("n=1", root, 0); n != 0 {
		t.Errorf("counted %d lists that tell nothing", n)
	}
	if n := ask("n=1", p.ann, 0); n != 1 {
		t.Errorf("counted %d, want 1", n)
	}
}
