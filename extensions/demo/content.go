package demo

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"strings"
)

//go:embed content.json
var contentJSON []byte

// content is the story that the demo tells: who is there and what was said.
type content struct {
	Users []struct{ Name, FullName string }
	Teams []struct {
		Name    string
		Members map[string]string // name of the user to role; one is the owner
		Rooms   []struct {
			Name, Topic string
			Messages    []message
		}
		Tasks []task
	}
}

// message is written as ["author", "text"] or ["author", "text", "image"].
type message struct {
	author, text string
	image        bool
}

// UnmarshalJSON reads the short form.
func (m *message) UnmarshalJSON(data []byte) error {
	var parts []string
	if err := json.Unmarshal(data, &parts); err != nil {
		return err
	}
	if len(parts) < 2 {
		return fmt.Errorf("message %s has no text", data)
	}
	m.author, m.text, m.image = parts[0], parts[1], len(parts) > 2
	return nil
}

// task is written as ["title", "assignee or nobody", "status", "priority", days until it is due].
type task struct {
	title, assignee, status, priority string
	dueDays                           int
}

// UnmarshalJSON reads the short form.
func (t *task) UnmarshalJSON(data []byte) error {
	return json.Unmarshal(data, &[]any{&t.title, &t.assignee, &t.status, &t.priority, &t.dueDays})
}

func readContent() (content, error) {
	var c content
	if err := json.Unmarshal(contentJSON, &c); err != nil {
		return content{}, fmt.Errorf("read demo content: %w", err)
	}
	return c, nil
}

func emailOf(user string) string { return user + "@demo.example" }

// recordID is the same in every load for the same path, so that removal finds what loading made and examples can name
// records. It is 15 characters of PocketBase's alphabet.
func recordID(path ...string) string {
	sum := sha256.Sum256([]byte("satchel demo/" + strings.Join(path, "/")))
	return strings.ToLower(base32.HexEncoding.EncodeToString(sum[:]))[:15]
}
