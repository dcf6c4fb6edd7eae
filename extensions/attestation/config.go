package attestation

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
)

// Config is read from SATCHEL_ATTESTATION_*.
type Config struct {
	Project string   `env:"PROJECT" help:"number of the Firebase project, digits only"`
	Apps    []string `env:"APPS" help:"ids of the apps that may ask, such as 1:123456789012:ios:0123456789abcdef"`
	Mode    string   `env:"MODE" default:"off" help:"what happens below /api on routes that ROUTES does not name: off, log, enforce or once"`
	Routes  []string `env:"ROUTES" help:"modes of routes and what is below them, such as /api/v1/auth/anonymous=enforce,POST /api/collections/users/records=log"`
}

// mode is what a route asks for; a higher one is stricter.
type mode int

const (
	off mode = iota
	log
	enforce
	once // enforce, and a token is good for one request
)

func modes() map[string]mode {
	return map[string]mode{"off": off, "log": log, "enforce": enforce, "once": once}
}

var projectPattern = regexp.MustCompile(`^[0-9]{6,20}$`)

// on reports whether any route looks at tokens.
func (c Config) on() bool {
	routes, err := parseRoutes(c.Routes)
	return err == nil && (modes()[c.Mode] != off || slices.ContainsFunc(routes, func(r route) bool { return r.mode != off }))
}

// Validate reports everything that cannot work, at once.
func (c Config) Validate() error {
	var problems []error
	if _, ok := modes()[c.Mode]; !ok {
		problems = append(problems, errors.New("MODE: must be off, log, enforce or once"))
	}
	if _, err := parseRoutes(c.Routes); err != nil {
		problems = append(problems, fmt.Errorf("ROUTES: %w", err))
	}
	if (c.on() || c.Project != "") && !projectPattern.MatchString(c.Project) {
		problems = append(problems, errors.New("PROJECT: must be the project's number"))
	}
	if c.on() && len(c.Apps) == 0 {
		problems = append(problems, errors.New("APPS: is needed"))
	}
	return errors.Join(problems...)
}

// route is the mode of a path and everything below it, for one method or all.
type route struct {
	method string // empty is any
	path   string // canonical, without a slash at the end
	mode   mode
}

func parseRoutes(items []string) ([]route, error) {
	routes := make([]route, 0, len(items))
	for _, item := range items {
		target, name, found := strings.Cut(item, "=")
		m, known := modes()[strings.TrimSpace(name)]
		method, path, hasMethod := strings.Cut(strings.TrimSpace(target), " ")
		if !hasMethod {
			method, path = "", method
		}
		path = strings.TrimSpace(path)
		if !found || !known || !strings.HasPrefix(path, "/api/") || strings.ContainsAny(path, "?#{} ") || (hasMethod && !slices.Contains(methods(), method)) {
			return nil, fmt.Errorf("%q is not [METHOD ]/api/path=mode", item)
		}
		path = canonical(strings.TrimSuffix(path, "/"))
		if slices.ContainsFunc(routes, func(r route) bool { return r.method == method && r.path == path }) {
			return nil, fmt.Errorf("%q is there twice", item)
		}
		routes = append(routes, route{method, path, m})
	}
	return routes, nil
}

func methods() []string { return []string{"GET", "POST", "PUT", "PATCH", "DELETE"} }

// canonical is the one path of what PocketBase's generated API serves at two.
func canonical(path string) string {
	for _, generated := range []string{"/collections", "/files", "/batch", "/realtime"} {
		if rest, ok := strings.CutPrefix(path, api.Prefix+generated); ok && (rest == "" || rest[0] == '/') {
			return "/api" + generated + rest
		}
	}
	return path
}

// find is the mode of a path: the longest entry that holds, one with the method before one for all.
func (g *Gate) find(method, path string) mode {
	if !strings.HasPrefix(path, "/api/") || strings.HasPrefix(path+"/", "/api/health/") || strings.HasPrefix(path+"/", "/api/v1/health/") ||
		strings.HasPrefix(path, "/api/collections/"+core.CollectionNameSuperusers+"/") {
		return off
	}
	best, m := -1, g.fallback
	for _, r := range g.routes {
		if r.method != "" && r.method != method && (r.method != "GET" || method != "HEAD") {
			continue
		}
		weight := 2 * len(r.path)
		if r.method != "" {
			weight++
		}
		if weight > best && (path == r.path || strings.HasPrefix(path, r.path+"/")) {
			best, m = weight, r.mode
		}
	}
	return m
}

// wildcard is a part of a pattern that stands for what the client sent.
var wildcard = regexp.MustCompile(`\{([a-zA-Z_]+)(\.\.\.|\$)?\}`)

// modeOf goes by the pattern that the router matched, because a path can be spelled in many ways, and a collection called
// by its id.
func (g *Gate) modeOf(e *core.RequestEvent) mode {
	if g.fallback == off && len(g.routes) == 0 {
		return off
	}
	_, pattern, _ := strings.Cut(e.Request.Pattern, "/")
	path := wildcard.ReplaceAllStringFunc("/"+pattern, func(part string) string {
		name := wildcard.FindStringSubmatch(part)[1]
		value := e.Request.PathValue(name)
		if name == "collection" {
			return collectionName(e.App, value)
		}
		return value
	})
	return g.find(e.Request.Method, strings.TrimSuffix(path, "/"))
}

// modeOfInner is the mode of a request inside a batch. A PUT creates or updates.
func (g *Gate) modeOfInner(app core.App, inner *core.InternalRequest) mode {
	path, _, _ := strings.Cut(inner.URL, "?")
	path = canonical(path)
	parts := strings.Split(path, "/")
	if len(parts) > 3 && parts[2] == "collections" {
		parts[3] = collectionName(app, parts[3])
		path = strings.Join(parts, "/")
	}
	if method := strings.ToUpper(inner.Method); method != http.MethodPut {
		return g.find(method, path)
	}
	return max(g.find("PUT", path), g.find("POST", path), g.find("PATCH", path+"/id"))
}

// collectionName is the name of a collection that is called by name, in any case, or id.
func collectionName(app core.App, nameOrID string) string {
	if c, err := app.FindCachedCollectionByNameOrId(nameOrID); err == nil {
		return c.Name
	}
	return nameOrID
}
