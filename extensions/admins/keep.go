package admins

import (
	"fmt"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/sessions/login"
)

// reasonRole is why the sessions of an admin end.
const reasonRole = "role_changed"

// bind watches every way in which an admin can change. What follows from a change belongs to its transaction; the request
// behind it, if there is one, is only known before that begins.
func (s *service) bind(h *extensions.Host) error {
	request := func(e *core.RecordRequestEvent) error { return s.inNameOf(e.RequestEvent, e.Record, e.Next) }
	h.App.OnRecordCreateRequest(CollectionID).BindFunc(request)
	h.App.OnRecordUpdateRequest(CollectionID).BindFunc(request)
	h.App.OnRecordDeleteRequest(CollectionID).BindFunc(request)

	h.App.OnRecordCreateExecute(CollectionID).Bind(&hook.Handler[*core.RecordEvent]{Id: "satchelAdminsCreate", Func: func(e *core.RecordEvent) error {
		return s.change(e, "admins.added", nil, e.Record)
	}})
	h.App.OnRecordUpdateExecute(CollectionID).Bind(&hook.Handler[*core.RecordEvent]{Id: "satchelAdminsUpdate", Func: func(e *core.RecordEvent) error {
		return s.change(e, "admins.changed", e.Record.Original(), e.Record)
	}})
	h.App.OnRecordDeleteExecute(CollectionID).Bind(&hook.Handler[*core.RecordEvent]{Id: "satchelAdminsDelete", Func: func(e *core.RecordEvent) error {
		return s.change(e, "admins.removed", e.Record.Original(), nil)
	}})
	return nil
}

// inNameOf lets the hooks know whose request changes the record.
func (s *service) inNameOf(e *core.RequestEvent, record *core.Record, act func() error) error {
	s.requests.Store(record, e)
	defer s.requests.Delete(record)
	return act()
}

// state is what the audit keeps of an admin.
func state(admin *core.Record) map[string]any {
	if admin == nil {
		return nil
	}
	return map[string]any{"email": admin.Email(), "role": admin.GetString(roleField)}
}

func roleOf(admin *core.Record) Role {
	if admin == nil {
		return ""
	}
	return Role(admin.GetString(roleField))
}

// change writes the record with all that belongs to it. A change of nothing but a password, say, is not its business.
func (s *service) change(e *core.RecordEvent, action string, before, after *core.Record) error {
	was, is := roleOf(before), roleOf(after)
	details := map[string]any{"before": state(before), "after": state(after)}
	if before != nil && after != nil && was == is && before.Email() == after.Email() {
		return e.Next()
	}
	outer := e.App
	return e.App.RunInTransaction(func(tx core.App) error {
		e.App = tx
		defer func() { e.App = outer }()
		if was == Owner && is != Owner {
			if err := anotherOwner(tx, e.Record.Id); err != nil {
				return err
			}
		}
		if before != nil && was != is {
			if err := s.endSessions(tx, e.Record); err != nil {
				return err
			}
			e.Record.RefreshTokenKey() // for tokens that no session is behind
		}
		if err := e.Next(); err != nil {
			return err
		}
		entry := audit.Entry{}
		if r, ok := s.requests.Load(e.Record); ok {
			if request, ok := r.(*core.RequestEvent); ok {
				entry = audit.From(request)
			}
		}
		entry.Action, entry.Subject, entry.Details = action, audit.PartyOf(e.Record), details
		return s.deps.Audit(tx, entry)
	})
}

// anotherOwner refuses to leave nobody who could make the next owner. PocketBase keeps its last superuser; the one that
// its installer makes up is nobody.
func anotherOwner(tx core.App, id string) error {
	var others int
	err := tx.DB().NewQuery(`SELECT (SELECT count(*) FROM {{` + Collection + `}} WHERE [[role]] = {:owner} AND [[id]] <> {:id})
		+ (SELECT count(*) FROM {{` + core.CollectionNameSuperusers + `}} WHERE [[email]] <> {:installer})`).
		Bind(dbx.Params{"owner": string(Owner), "id": id, "installer": core.DefaultInstallerEmail}).Row(&others)
	if err != nil {
		return fmt.Errorf("count owners: %w", err)
	}
	if others == 0 {
		return api.Fail(ErrLastOwner, "make somebody else an owner first")
	}
	return nil
}

// endSessions ends those of the admin, and those in which he acts for a user.
func (s *service) endSessions(tx core.App, admin *core.Record) error {
	for _, where := range []string{login.Owned, login.Acting} {
		if _, err := login.End(tx, s.now(), reasonRole, where, login.Owner(admin)); err != nil {
			return err
		}
	}
	return nil
}
