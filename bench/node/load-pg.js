// Copies the seeded rows from SQLITE into an empty PostgreSQL database, with the same tables and indexes.
'use strict';

const Database = require('better-sqlite3');
const { Client } = require('pg');

const schema = `
create table users(id text primary key, avatar text, created text, email text unique, "emailVisibility" boolean, name text, password text,
  updated text, verified boolean);
create table bench_notes(id text primary key, attachment text, body text, created text, meta jsonb,
  owner text not null references users(id) on delete cascade, status text, title text not null, updated text);
create index on bench_notes(owner, updated, id);
create table room_members(id text primary key, "user" text not null references users(id), room text not null);
create unique index on room_members(room, "user");
create table message(id text primary key, created text, data text, owner text not null references users(id), room text not null, updated text);
`;

const tables = {
  users: ['id', 'avatar', 'created', 'email', 'emailVisibility', 'name', 'password', 'updated', 'verified'],
  bench_notes: ['id', 'attachment', 'body', 'created', 'meta', 'owner', 'status', 'title', 'updated'],
  room_members: ['id', 'user', 'room'],
};

// The server may still be starting.
const connect = async () => {
  for (let attempt = 1; ; attempt++) {
    const client = new Client();
    try {
      await client.connect();
      return client;
    } catch (err) {
      if (attempt === 100) throw err;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
};

const main = async () => {
  const source = new Database(process.env.SQLITE, { readonly: true });
  const client = await connect();
  await client.query(schema);
  await client.query('BEGIN');
  for (const [table, columns] of Object.entries(tables)) {
    const names = columns.map((c) => `"${c}"`).join(',');
    const text = `insert into ${table}(${names}) values(${columns.map((_, i) => `$${i + 1}`)})`;
    for (const row of source.prepare(`select ${names} from ${table}`).all()) {
      await client.query({ name: table, text, values: columns.map((c) => row[c]) });
    }
  }
  await client.query('COMMIT');
  await client.query('VACUUM ANALYZE');
  await client.end();
};

main().catch((err) => {
  console.error(err);
  process.exit(1);
});
