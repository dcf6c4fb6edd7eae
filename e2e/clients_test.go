package e2e

import (
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// secureStore stands in for the module that a phone has.
const secureStore = `const kept = new Map();
const SecureStore = {
  getItemAsync: async (key) => kept.get(key) ?? null,
  setItemAsync: async (key, value) => void kept.set(key, value),
  deleteItemAsync: async (key) => void kept.delete(key),
};
`

// TestClients runs the JavaScript of docs/clients, whose other languages are not run, against the server.
func TestClients(t *testing.T) {
	if _, err := exec.LookPath("node"); err != nil && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	installSDK(t)
	generate(t, "clients/web.gen.mjs", clientCode(t, "web.md"))
	const module = `import * as SecureStore from "expo-secure-store";`
	native := clientCode(t, "react-native.md")
	if !strings.HasPrefix(native, module) {
		t.Fatal("the code of React Native does not begin with its import")
	}
	generate(t, "clients/native.gen.mjs", `import { Session } from "./web.gen.mjs";`+"\n"+secureStore+strings.TrimPrefix(native, module))

	s := start(t, relaxed()...)
	s.createSuperuser(t)
	control := httptest.NewServer(s.control())
	defer control.Close()
	if passed := s.runNode(t, []string{"sdk/clients/clients.test.mjs"}, "E2E_PATHS=stock", "E2E_CONTROL="+control.URL); passed < 15 {
		t.Errorf("hardly any test ran: %d", passed)
	}
}

// generate writes a file below sdk/, where Node finds the packages, until the test ends.
func generate(t *testing.T, name, code string) {
	t.Helper()
	file := filepath.Join("sdk", name)
	if err := os.WriteFile(file, []byte(code), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(file) })
}

// clientCode is all JavaScript of a document.
func clientCode(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "docs", "clients", name))
	if err != nil {
		t.Fatal(err)
	}
	var code strings.Builder
	for _, block := range jsBlock.FindAllSubmatch(text, -1) {
		code.Write(block[1])
	}
	if code.Len() == 0 {
		t.Fatalf("%s has no JavaScript", name)
	}
	return code.String()
}
