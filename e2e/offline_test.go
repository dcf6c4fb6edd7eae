package e2e

import (
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"testing"
)

// commonJS are imports of packages that Node cannot import by the names that bundlers understand.
var commonJS = regexp.MustCompile(`(?m)^import (\{[^}]*\}) from ("@nozbe/[^"]+");$`)

// TestStockClients runs WatermelonDB and RxDB from npm, connected by the JavaScript of docs/clients, and the client that is
// written there, against the server.
func TestStockClients(t *testing.T) {
	if _, err := exec.LookPath("node"); err != nil && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	installSDK(t)
	generate(t, "offline/watermelon.gen.mjs", "import { createRequire } from \"node:module\";\n"+
		commonJS.ReplaceAllString(clientCode(t, "watermelon.md"), "const $1 = createRequire(import.meta.url)($2);"))
	generate(t, "offline/rxdb.gen.mjs", clientCode(t, "rxdb.md"))
	generate(t, "offline/offline.gen.mjs", clientCode(t, "offline.md"))
	s := start(t, relaxed()...)
	s.createSuperuser(t)
	control := httptest.NewServer(s.control())
	defer control.Close()
	passed := s.runNode(t, []string{"sdk/offline/watermelon.test.mjs", "sdk/offline/rxdb.test.mjs", "sdk/offline/offline.test.mjs"},
		"E2E_PATHS=stock", "E2E_CONTROL="+control.URL, "NODE_OPTIONS=--experimental-websocket")
	if passed < 23 {
		t.Errorf("hardly any test ran: %d", passed)
	}
}
