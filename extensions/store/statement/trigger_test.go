package statement

import "testing"

func TestContained(t *testing.T) {
	for text, want := range map[string]bool{
		`CREATE TRIGGER t AFTER INSERT ON beginners BEGIN INSERT INTO log (rec) VALUES (NEW.id); END`:                           true,
		`CREATE TRIGGER t AFTER INSERT ON a begin insert into "LOG" (rec) VALUES (1); SELECT RAISE(ABORT, 'no'); end`:           true,
		`CREATE TRIGGER t AFTER UPDATE OF id ON a WHEN OLD.id IS NOT NEW.id BEGIN DELETE FROM log; UPDATE log SET rec = 1; END`: true,
		`CREATE TRIGGER t BEFORE DELETE ON a BEGIN SELECT RAISE(ABORT, 'kept'); END`:                                            true,
		`CREATE TRIGGER t AFTER INSERT ON a BEGIN UPDATE users SET x = 1; END`:                                                  false,
		`CREATE TRIGGER t AFTER INSERT ON a BEGIN INSERT INTO log (rec) VALUES (1); UPDATE users SET x = 1; END`:                false,
		`CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; /* ; SELECT 1; */ UPDATE users SET x = 1; END`:                      false,
		"CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; -- ;\nDELETE FROM users; END":                                       false,
		`CREATE TRIGGER "begin select 1" AFTER INSERT ON a BEGIN UPDATE users SET x = 1; END`:                                   false,
		`CREATE TRIGGER t AFTER INSERT ON a BEGIN REPLACE INTO users VALUES (1); END`:                                           false,
		`CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 'x; SELECT 1'; DELETE FROM users; END`:                                 false,

		`CREATE TRIGGER t AFTER INSERT ON a`: false,
	} {
		if got := Contained(text, func(table string) bool { return table == "log" }); got != want {
			t.Errorf("%v: %s", got, text)
		}
	}
}
