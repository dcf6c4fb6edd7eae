// Package demo loads a small app, team chat with tasks, into the data folder and takes it out again.
//
// It shows what a real app looks like: people who own things, people who belong to a team, row rules for both, images,
// and indexes for every list. `satchel demo` creates three users in the collection users (ada, grace and alan at
// demo.example), two teams with members in the collections of the extension teams, the collections below and more than
// 200 records. `satchel demo --remove` deletes exactly that: the collections, the two teams, the three users with
// everything that belongs to them, and their files.
//
// Collections: demo_profiles (what team mates see of each other), demo_rooms, demo_messages, demo_tasks. Alan and Grace
// belong to both teams and Ada to one, so each rule has an owner, a member, an outsider and a guest to show.
//
// Records keep the same ids and texts in every load; their times end shortly before the moment of loading. Everything is
// written in one transaction, so a load that fails or is killed leaves no record behind; files of a killed load are
// swept by the next load or removal. A server that is running on the same folder sees the collections after about
// 50 ms, because PocketBase watches for changes of other processes.
//
// It refuses to run in production without --yes, where it also makes up a password instead of the well-known one, and
// it refuses when one of its users' e-mail addresses is taken. It has no settings, routes or tables of its own.
package demo

import (
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
)

// DevelopmentPassword is the password of all demo users outside production.
const DevelopmentPassword = "satchel-demo"

// Names of the collections. Those of teams are not the demo's own.
const (
	Teams    = "teams"
	Members  = "team_members"
	Profiles = "demo_profiles"
	Rooms    = "demo_rooms"
	Messages = "demo_messages"
	Tasks    = "demo_tasks"
)

// CollectionNames lists the demo's own collections so that each comes after those that it refers to.
func CollectionNames() []string {
	return []string{Profiles, Rooms, Messages, Tasks}
}

// New returns the extension.
func New() extensions.Extension {
	return extensions.Extension{
		Name:     "demo",
		Commands: func(h *extensions.Host) []*cobra.Command { return []*cobra.Command{command(h)} },
	}
}
