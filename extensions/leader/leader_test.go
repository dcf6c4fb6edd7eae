package leader_test

import (
	"testing"

	"github.com/satchelbase/satchel/extensions/leader"
)

func TestAloneLeads(t *testing.T) {
	if !leader.Alone().Is() {
		t.Error("an installation of one process has no leader")
	}
}
