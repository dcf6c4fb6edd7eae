package audit

import (
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/audit/ledger"
)

// privilegedPriority is behind everything that decides who makes the request, and before PocketBase's handlers.
const privilegedPriority = -900

// privilegedRoutes are the routes of PocketBase whose acts are neither in a transaction nor reported by a hook.
var privilegedRoutes = map[string]string{ //nolint:gochecknoglobals // read only, and asked at every request
	"POST /api/sql":                                       "sql.executed",
	"POST /api/backups":                                   "backups.created",
	"POST /api/backups/upload":                            "backups.uploaded",
	"GET /api/backups/{key}":                              "backups.downloaded",
	"DELETE /api/backups/{key}":                           "backups.deleted",
	"POST /api/backups/{key}/restore":                     "backups.restored",
	"DELETE /api/collections/{collection}/truncate":       "collections.truncated",
	"POST /api/crons/{id}":                                "crons.run",
	"POST /api/collections/{collection}/impersonate/{id}": "accounts.impersonated",
}

// privileged records the acts of these routes: that they begin before they do, so that none goes without an entry, and
// when they fail. Who is not allowed to is recorded like a failed sign-in.
func (l *Log) privileged(e *core.RequestEvent) error {
	action := privilegedRoutes[e.Request.Pattern]
	if action == "" {
		return e.Next()
	}
	entry := From(e)
	entry.Action, entry.Outcome, entry.Details = action, Began, map[string]any{}
	for name, shown := range map[string]string{"key": "name", "collection": "collection", "id": "job"} {
		if value := e.Request.PathValue(name); value != "" {
			entry.Details[shown] = value // not "key": that would be redacted
		}
	}
	allowed := e.HasSuperuserAuth()
	if action == "backups.downloaded" { // it takes a token in the address instead
		entry.Actor = Party{Kind: Guest}
		account, err := e.App.FindAuthRecordByToken(e.Request.URL.Query().Get("token"), core.TokenTypeFile)
		if allowed = err == nil && account.IsSuperuser(); allowed {
			entry.Actor = PartyOf(account)
		}
	}
	switch {
	case !allowed:
		err := e.Next()
		if err != nil {
			l.logged(l.NoteFailure(e.App, e, action, Denied, nil, entry.Details))
		}
		return err
	case action == "backups.created": // the hook records it, which is told who asks
		l.backup.Store(e)
		defer l.backup.Store(nil)
		return e.Next()
	case action == "accounts.impersonated":
		if account, err := e.App.FindRecordById(e.Request.PathValue("collection"), e.Request.PathValue("id")); err == nil {
			entry.Subject = PartyOf(account)
		}
		entry.Details = nil
	}
	if err := l.Append(e.App, entry); err != nil {
		return err
	}
	if action == "backups.restored" { // it happens after the answer
		l.restore.Store(&entry.Actor)
	}
	err := e.Next()
	if err != nil {
		l.restore.CompareAndSwap(&entry.Actor, nil)
		entry.Outcome = Failure
		l.logged(l.Append(e.App, entry))
	}
	return err
}

// watchBackup records that a backup was made, also by PocketBase's own schedule.
func (l *Log) watchBackup(e *core.BackupEvent) error {
	var entry Entry
	if request := l.backup.Load(); request != nil {
		entry = From(request)
	}
	entry.Action, entry.Details = "backups.created", map[string]any{"name": e.Name}
	err := e.Next()
	if err != nil {
		entry.Outcome = Failure
		l.logged(l.Append(e.App, entry))
		return err
	}
	return l.Append(e.App, entry)
}

// watchRestore tells the checkpoint file that the database is about to be replaced: what it holds now will be gone.
func (l *Log) watchRestore(e *core.BackupEvent) error {
	if err := l.Append(e.App, Entry{Action: "backups.restored", Outcome: Began, Details: map[string]any{"name": e.Name}}); err != nil {
		return err
	}
	var by Party
	if request := l.restore.Swap(nil); request != nil {
		by = *request
	}
	if err := l.WriteMarks(func(ledger.Mark) bool { return false }, &ledger.Restore{Name: e.Name, By: by}); err != nil {
		l.warn(err)
	}
	err := e.Next()
	if err == nil {
		return nil
	}
	l.logged(l.Append(e.App, Entry{Action: "backups.restored", Outcome: Failure, Details: map[string]any{"name": e.Name}}))
	if markErr := l.WriteMarks(func(m ledger.Mark) bool { return m.Restore != nil && m.Restore.Name == e.Name }, nil); markErr != nil {
		l.warn(markErr)
	}
	return err
}
