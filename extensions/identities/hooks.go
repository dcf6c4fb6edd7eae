package identities

import (
	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
)

// executePriority is outside of what ends sessions when the token key changes (100), so that a new key is seen there, and
// beside PocketBase's own reset of external auths (99).
const executePriority = 98

// keepLinks in the context of a save says that the record becomes verified by its owner's own link.
type keepLinks struct{}

// bind keeps the tables in step with the records, in the transaction of the change.
func (s *service) bind(app core.App) {
	update := func(e *core.RecordEvent) error {
		upgraded := !e.Record.Original().IsNew() && !e.Record.Original().Verified() && e.Record.Verified() && e.Context.Value(keepLinks{}) == nil
		return inTransaction(e, upgraded || passwordChanged(e.Record), func(app core.App) error {
			if upgraded {
				if err := s.forget(app, e.Record); err != nil {
					return err
				}
			}
			return notePassword(app, e.Record)
		})
	}
	create := func(e *core.RecordEvent) error {
		return inTransaction(e, passwordChanged(e.Record), func(app core.App) error { return notePassword(app, e.Record) })
	}
	remove := func(e *core.RecordEvent) error {
		return inTransaction(e, true, func(app core.App) error { return removeRows(app, ofRecord(e.Record)) })
	}
	app.OnRecordUpdateExecute().Bind(&hook.Handler[*core.RecordEvent]{Id: "satchelIdentitiesUpdate", Priority: executePriority, Func: authOnly(update)})
	app.OnRecordCreateExecute().Bind(&hook.Handler[*core.RecordEvent]{Id: "satchelIdentitiesCreate", Priority: executePriority, Func: authOnly(create)})
	app.OnRecordDeleteExecute().Bind(&hook.Handler[*core.RecordEvent]{Id: "satchelIdentitiesDelete", Priority: executePriority, Func: authOnly(remove)})
	app.OnRecordAfterDeleteSuccess().Bind(&hook.Handler[*core.RecordEvent]{Id: "satchelIdentitiesDeleted", Func: func(e *core.RecordEvent) error {
		if e.Record.Collection().IsAuth() {
			s.revoked.Wake()
		}
		return e.Next()
	}})
	app.OnCollectionDeleteExecute().Bind(&hook.Handler[*core.CollectionEvent]{Id: "satchelIdentitiesCollection", Func: func(e *core.CollectionEvent) error {
		if !e.Collection.IsAuth() {
			return e.Next()
		}
		if err := e.Next(); err != nil {
			return err
		}
		return e.App.RunInTransaction(func(app core.App) error { return removeRows(app, dbx.HashExp{"collection": e.Collection.Id}) })
	}})
}

func authOnly(fn func(*core.RecordEvent) error) func(*core.RecordEvent) error {
	return func(e *core.RecordEvent) error {
		if !e.Record.Collection().IsAuth() {
			return e.Next()
		}
		return fn(e)
	}
}

// inTransaction runs before and the rest of the chain as one, if there is anything to do before.
func inTransaction(e *core.RecordEvent, needed bool, before func(app core.App) error) error {
	if !needed {
		return e.Next()
	}
	outer := e.App
	return e.App.RunInTransaction(func(app core.App) error {
		e.App = app
		defer func() { e.App = outer }()
		if err := before(app); err != nil {
			return err
		}
		return e.Next()
	})
}

// forget ends what somebody may have left in an account before its owner proved the address: whoever made it with another
// person's address has no identity in it any more (as PocketBase does with external auths).
func (s *service) forget(app core.App, record *core.Record) error {
	n, err := deleteLinks(app, ofRecord(record))
	if err != nil || n == 0 {
		return err
	}
	record.RefreshTokenKey()
	return s.revoke(app, record, "identities_reset")
}

// passwordChanged reports a new hash. A new record has none before.
func passwordChanged(record *core.Record) bool {
	hash := core.FieldNamePassword + ":hash"
	return record.IsNew() || record.GetString(hash) != record.Original().GetString(hash)
}

// notePassword tells a password that somebody chose, whose text is at hand until it is saved, from one that PocketBase
// made up, whose text it throws away.
func notePassword(app core.App, record *core.Record) error {
	if !passwordChanged(record) {
		return nil
	}
	return setPasswordless(app, record, record.GetString(core.FieldNamePassword) == "")
}

func removeRows(app core.App, where dbx.HashExp) error {
	if _, err := deleteLinks(app, where); err != nil {
		return err
	}
	_, err := app.DB().Delete(passwordlessTable, where).Execute()
	return err
}
