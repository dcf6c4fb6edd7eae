package channel_test

import (
	"testing"

	"github.com/satchelbase/satchel/extensions/live/channel"
)

func TestParse(t *testing.T) {
	c, err := channel.Parse(`+room:{id}=@request.auth.id != ""|>*`)
	if err != nil || c.Pattern != "room:{id}" || !c.Presence || *c.Join != `@request.auth.id != ""` || *c.Publish != "" {
		t.Errorf("%+v %v", c, err)
	}
	if c, err = channel.Parse("news=*"); err != nil || *c.Join != "" || c.Publish != nil {
		t.Errorf("%+v %v", c, err)
	}
	for _, bad := range []string{"", "room", "=x", "a b=*", "room:{}=*", "room:{I-}=*", "{a=*"} {
		if c, err := channel.Parse(bad); err == nil {
			t.Errorf("%q is read as %+v", bad, c)
		}
	}
}

func TestFind(t *testing.T) {
	families := []channel.Channel{{Pattern: "room:{id}"}, {Pattern: "a.b"}, {Pattern: "team:{team}:{topic}"}}
	for name, want := range map[string]string{
		"room:7": "room:{id}", "a.b": "a.b", "team:x:y-1": "team:{team}:{topic}",
		"room:": "", "room:a:b": "", "axb": "", "xroom:7": "", "room:7\n": "", "room:a b": "",
	} {
		c, values, ok := channel.Find(families, name)
		if ok != (want != "") || c.Pattern != want {
			t.Errorf("%q: %+v", name, c)
		}
		if name == "team:x:y-1" && (values["team"] != "x" || values["topic"] != "y-1") {
			t.Errorf("%v", values)
		}
	}
}
