// better-sqlite3 with prepared statements, in PocketBase's journal mode.
'use strict';

const Database = require('better-sqlite3');

const db = new Database(process.env.SQLITE);
for (const pragma of ['busy_timeout=10000', 'journal_mode=WAL', 'synchronous=NORMAL', 'foreign_keys=ON', 'temp_store=MEMORY', 'cache_size=-32000']) {
  db.pragma(pragma);
}

const statements = new Map();

// $1 is PostgreSQL's form; SQLite numbers its parameters ?1.
const prepare = (name, sql) => {
  let statement = statements.get(name);
  if (!statement) {
    statement = db.prepare(sql.replace(/\$(\d+)/g, '?$1'));
    statements.set(name, statement);
  }
  return statement;
};

const named = (args) => Object.fromEntries(args.map((value, i) => [i + 1, value]));

const run = async (name, sql, args) => prepare(name, sql).run(named(args));

module.exports = {
  all: async (name, sql, args) => prepare(name, sql).all(named(args)),
  run,
  // There is one connection and no other work between the awaits of fn, because run never really waits.
  transaction: async (fn) => {
    db.exec('BEGIN IMMEDIATE');
    try {
      const result = await fn({ run });
      db.exec('COMMIT');
      return result;
    } catch (err) {
      db.exec('ROLLBACK');
      throw err;
    }
  },
};
