package contract_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// foundation is what every extension may import: the contract, its conventions, and the paths that features share.
// internal/* is allowed too.
func foundation() []string {
	return []string{"extensions", "extensions/api", "extensions/settings", "extensions/cli", "extensions/records", "extensions/changes", "extensions/operations"}
}

// friends lists the other imports between extensions. A line here is a decision: the extension takes the other one's
// type as an argument of its constructor.
func friends() map[string][]string {
	return map[string][]string{
		"account":       {"jobs"},
		"admins":        {"audit", "sessions/login"},
		"anonymous":     {"audit"},
		"apikeys":       {"audit"},
		"records":       {"rows"},
		"impersonation": {"sessions"},
		"live":          {"rows"},
		"oauth":         {"sessions"},
		"operations":    {"audit", "idempotency"},
		"push":          {"idempotency", "jobs", "live/channel"},
		"sessions":      {"audit", "authcache"},
		"sync":          {"rows", "records/body"},
	}
}

// allowed lists what a package may import of this module, as paths or as patterns that end in "/...".
func allowed(path string, friends map[string][]string) []string {
	top, rest, _ := strings.Cut(path, "/")
	feature, _, _ := strings.Cut(rest, "/")
	switch {
	case top == "hooks":
		return []string{"hooks/...", "extensions/..."}
	case top == "migrations":
		return []string{"migrations/..."}
	case top != "extensions":
		return []string{"..."} // main, and programs and tests around it
	case rest == "", rest == "settings":
		return nil
	case feature == "internal":
		return []string{"extensions", "extensions/api", "extensions/settings", "extensions/internal/..."}
	case feature == "api":
		return []string{"extensions", "extensions/api/...", "extensions/settings", "extensions/internal/..."}
	}
	list := append(foundation(), "extensions/internal/...", "extensions/"+feature+"/...")
	for _, friend := range friends[feature] {
		list = append(list, "extensions/"+friend)
	}
	return list
}

func matches(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if prefix, ok := strings.CutSuffix(p, "..."); ok {
			return strings.HasPrefix(path+"/", prefix)
		}
		return path == p
	})
}

// wrongImports finds imports against the direction main -> hooks -> extensions -> PocketBase. Tests of an extension may
// use any extension, but no more than that.
func wrongImports(tr tree, friends map[string][]string) []string {
	var findings []string
	for _, p := range tr.packages {
		path := p.path()
		inTests := []string{"..."}
		if strings.HasPrefix(path+"/", "extensions/") {
			inTests = []string{"extensions/..."}
		}
		check := func(imports, patterns []string, where string) {
			for _, imported := range imports {
				own, ok := strings.CutPrefix(imported, module+"/")
				if imported == module {
					own, ok = ".", true
				}
				if ok && !matches(patterns, own) {
					findings = append(findings, fmt.Sprintf("%s%s must not import %s", path, where, own))
				}
			}
		}
		check(p.Imports, allowed(path, friends), "")
		check(slices.Concat(p.TestImports, p.XTestImports), inTests, " (tests)")
		if slices.Contains(p.Imports, "github.com/pocketbase/pocketbase/plugins/ghupdate") {
			findings = append(findings, path+" must not import ghupdate: the binary never replaces itself")
		}
	}
	return findings
}

func TestImports(t *testing.T) {
	tr := load(t, here(t))
	none(t, wrongImports(tr, friends()))

	// The table holds no leftovers.
	for name, others := range friends() {
		for _, other := range others {
			used := slices.ContainsFunc(tr.packages, func(p pkg) bool {
				return strings.HasPrefix(p.path()+"/", "extensions/"+name+"/") && slices.Contains(p.Imports, module+"/extensions/"+other)
			})
			if !used {
				t.Errorf("friends allows %s to import %s, which it does not", name, other)
			}
		}
	}
}

func TestImportsCanFail(t *testing.T) {
	importing := func(name string, paths ...string) string {
		text := "package " + name + "\n\nimport (\n"
		for _, p := range paths {
			if !strings.Contains(p, ".") {
				p = module + "/" + p
			}
			text += "\t_ \"" + p + "\"\n"
		}
		return text + ")\n"
	}
	root := plant(t, map[string]string{
		"main.go":                          importing("main", "hooks", "migrations", "extensions/push"),
		"migrations/a.go":                  importing("migrations", "extensions/pull"),
		"hooks/hooks.go":                   importing("hooks", "extensions/push", "migrations"),
		"extensions/extensions.go":         importing("extensions", "extensions/settings"),
		"extensions/settings/s.go":         importing("settings", "extensions/internal/pb"),
		"extensions/api/a.go":              importing("api", "extensions", "extensions/pull"),
		"extensions/internal/pb/p.go":      importing("pb", "extensions/pull"),
		"extensions/internal/apptest/a.go": importing("apptest", "extensions/api", "extensions/internal/pb"),
		"extensions/pull/p.go":             "package pull\n",
		"extensions/pull/part/p.go":        "package part\n",
		"extensions/pull/p_test.go":        importing("pull", "extensions/push", "extensions/internal/apptest"),
		"extensions/pull/x_test.go":        importing("pull_test", "hooks"),
		"extensions/push/p.go":             importing("push", "extensions", "extensions/api", "extensions/push/apns", "extensions/pull", "hooks"),
		"extensions/push/apns/p.go":        importing("apns", "extensions/pull/part", "github.com/pocketbase/pocketbase/plugins/ghupdate"),
		"extensions/jobs/j.go":             importing("jobs", "extensions/pull"),
		"extensions/pushy/p.go":            importing("pushy", "migrations", "extensions/internal/pb"),
	})
	exactly(t, wrongImports(load(t, root), map[string][]string{"jobs": {"pull"}}),
		"migrations must not import extensions/pull",
		"hooks must not import migrations",
		"extensions must not import extensions/settings",
		"extensions/settings must not import extensions/internal/pb",
		"extensions/api must not import extensions/pull",
		"extensions/internal/pb must not import extensions/pull",
		"extensions/pull (tests) must not import hooks",
		"extensions/push must not import extensions/pull",
		"extensions/push must not import hooks",
		"extensions/push/apns must not import extensions/pull/part",
		"extensions/push/apns must not import ghupdate",
		"extensions/pushy must not import migrations",
	)
}
