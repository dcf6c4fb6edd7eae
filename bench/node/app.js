// The usual Express stack, with the URLs and answers of PocketBase for the schema of the benchmark. The database is
// SQLite with SQLITE=file, otherwise PostgreSQL from PGHOST and so on.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const bcrypt = require('bcryptjs');
const cors = require('cors');
const express = require('express');
const rateLimit = require('express-rate-limit');
const helmet = require('helmet');
const jwt = require('jsonwebtoken');
const morgan = require('morgan');

const store = process.env.SQLITE ? require('./store-sqlite') : require('./store-pg');

const secret = crypto.randomBytes(32).toString('hex');
const notes = '/api/collections/bench_notes/records';
const noteColumns = ['attachment', 'body', 'created', 'id', 'meta', 'owner', 'status', 'title', 'updated'];
const insertNote = `insert into bench_notes(${noteColumns}) values($1,$2,$3,$4,$5,$6,$7,$8,$9)`;

const letters = 'abcdefghijklmnopqrstuvwxyz0123456789';
const newId = () => Array.from(crypto.randomBytes(15), (b) => letters[b % letters.length]).join('');
const now = () => new Date().toISOString().replace('T', ' ');

// Express 4 does not wait for promises.
const route = (handler) => (req, res, next) => handler(req, res, next).catch(next);

const auth = route(async (req, res, next) => {
  let claims;
  try {
    claims = jwt.verify((req.headers.authorization || '').replace(/^Bearer /, ''), secret);
  } catch {
    return res.status(401).json({ message: 'sign in first' });
  }
  [req.user] = await store.all('user by id', 'select * from users where id=$1', [claims.userId]);
  if (!req.user) return res.status(401).json({ message: 'there is no such user' });
  next();
});

const userRecord = (u) => ({
  avatar: u.avatar, collectionId: '_pb_users_auth_', collectionName: 'users', created: u.created, email: u.email,
  emailVisibility: Boolean(u.emailVisibility), id: u.id, name: u.name, updated: u.updated, verified: Boolean(u.verified),
});

const session = (u) => ({ record: userRecord(u), token: jwt.sign({ userId: u.id }, secret, { expiresIn: '15m' }) });

const noteRecord = (n) => {
  if (typeof n.meta === 'string') n.meta = JSON.parse(n.meta);
  return { collectionId: 'notes0000benche', collectionName: 'bench_notes', ...n };
};

const valid = (b, user) =>
  b.owner === user.id && typeof b.title === 'string' && b.title !== '' && b.title.length <= 200 &&
  (b.body === undefined || (typeof b.body === 'string' && b.body.length <= 20000)) &&
  (!b.status || ['open', 'done', 'archived'].includes(b.status));

const create = async (db, b) => {
  const at = now();
  const n = {
    attachment: '', body: b.body || '', created: at, id: newId(), meta: b.meta ? JSON.stringify(b.meta) : null, owner: b.owner,
    status: b.status || '', title: b.title, updated: at,
  };
  await db.run('insert note', insertNote, noteColumns.map((c) => n[c]));
  return noteRecord(n);
};

const app = express();
app.use(helmet());
app.use(cors());
app.use(rateLimit({ windowMs: 15 * 60 * 1000, limit: 1e9, standardHeaders: true, legacyHeaders: false }));
app.use(express.json({ limit: '10mb' }));
app.use(morgan('combined', { stream: fs.createWriteStream(process.env.LOG || 'access.log') }));

app.get('/api/health', (req, res) => res.json({}));

app.post('/api/collections/users/auth-with-password', route(async (req, res) => {
  const [user] = await store.all('user by email', 'select * from users where email=$1', [req.body.identity]);
  if (!user || !(await bcrypt.compare(req.body.password, user.password))) return res.status(400).json({});
  res.json(session(user));
}));

app.post('/api/collections/users/auth-refresh', auth, (req, res) => res.json(session(req.user)));

app.get('/api/collections/users/auth-methods', auth, (req, res) => res.json({
  password: { identityFields: ['email'], enabled: true }, oauth2: { providers: [], enabled: false },
  mfa: { enabled: false, duration: 0 }, otp: { enabled: false, duration: 0 }, authProviders: [],
  usernamePassword: false, emailPassword: true,
}));

app.get(notes, auth, route(async (req, res) => {
  const page = parseInt(req.query.page) || 1;
  const perPage = Math.min(parseInt(req.query.perPage) || 30, 1000);
  const items = store.all('list notes', `select ${noteColumns} from bench_notes where owner=$1 order by updated desc limit $2 offset $3`,
    [req.user.id, perPage, (page - 1) * perPage]);
  let totalItems = -1;
  if (!req.query.skipTotal) {
    const [row] = await store.all('count notes', 'select count(*) as n from bench_notes where owner=$1', [req.user.id]);
    totalItems = Number(row.n);
  }
  const totalPages = totalItems < 0 ? -1 : Math.ceil(totalItems / perPage);
  res.json({ items: (await items).map(noteRecord), page, perPage, totalItems, totalPages });
}));

app.get(`${notes}/:id`, auth, route(async (req, res) => {
  const [note] = await store.all('note by id', `select ${noteColumns} from bench_notes where id=$1 and owner=$2`, [req.params.id, req.user.id]);
  if (!note) return res.status(404).json({});
  res.json(noteRecord(note));
}));

app.post(notes, auth, route(async (req, res) => {
  if (!valid(req.body, req.user)) return res.status(400).json({});
  res.json(await create(store, req.body));
}));

app.post('/api/batch', auth, route(async (req, res) => {
  const bodies = req.body.requests.map((r) => r.body);
  if (!bodies.every((b) => valid(b, req.user))) return res.status(400).json({});
  res.json(await store.transaction(async (db) => {
    const out = [];
    for (const b of bodies) out.push({ status: 200, body: await create(db, b) });
    return out;
  }));
}));

app.post('/api/collections/message/records', auth, route(async (req, res) => {
  const { owner, room, data } = req.body;
  const [member] = await store.all('member', 'select 1 as one from room_members where room=$1 and "user"=$2', [room, req.user.id]);
  if (!member || owner !== req.user.id) return res.status(400).json({});
  const at = now();
  const m = { created: at, data, id: newId(), owner, room, updated: at };
  await store.run('insert message', 'insert into message(created,data,id,owner,room,updated) values($1,$2,$3,$4,$5,$6)', Object.values(m));
  res.json({ collectionId: 'message00benche', collectionName: 'message', ...m });
}));

app.use((err, req, res, next) => {
  console.error(err);
  if (res.headersSent) return next(err);
  res.status(500).json({ message: 'something went wrong' });
});

const server = app.listen(Number(process.env.PORT), '127.0.0.1');
// The default of 5 s would close connections of the generator while others have their turn.
server.keepAliveTimeout = 10 * 60 * 1000;
