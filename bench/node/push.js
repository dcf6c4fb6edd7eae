// What the row "pushes" of the benchmark compares with: one notification to all devices by @parse/node-apn, with a row in
// SQLite for each that says what became of it, while a record is written every few milliseconds.
'use strict';

const fs = require('fs');
const apn = require('@parse/node-apn');
const Database = require('better-sqlite3');

const env = process.env;
const devices = Number(env.DEVICES);

// Pages are as large, and as many pushes under way, as Satchel's.
const page = 500;
const slice = 100;
const parallel = 5;

const db = new Database(env.SQLITE);
for (const pragma of ['journal_mode=WAL', 'synchronous=NORMAL', 'temp_store=MEMORY', 'cache_size=-32000']) {
  db.pragma(pragma);
}
db.exec(`CREATE TABLE devices (id TEXT PRIMARY KEY, token TEXT NOT NULL, dead_at INTEGER NOT NULL DEFAULT 0);
  CREATE TABLE deliveries (message INTEGER NOT NULL, device TEXT NOT NULL, state TEXT NOT NULL, code TEXT NOT NULL DEFAULT '', at INTEGER NOT NULL, PRIMARY KEY (message, device)) WITHOUT ROWID;
  CREATE TABLE notes (id INTEGER PRIMARY KEY, title TEXT NOT NULL)`);

const hex = (n, length) => n.toString(16).padStart(length, '0');
const addDevice = db.prepare('INSERT INTO devices (id, token) VALUES (?, ?)');
db.transaction(() => {
  for (let i = 0; i < devices; i++) {
    addDevice.run(`device-${hex(i, 6)}`, i % Number(env.DEAD_EVERY) === 0 ? `dead00${hex(i, 58)}` : hex(i, 64));
  }
})();

const queue = db.prepare("INSERT INTO deliveries (message, device, state, at) VALUES (1, ?, 'queued', ?)");
const settle = db.prepare('UPDATE deliveries SET state = ?, code = ?, at = ? WHERE message = 1 AND device = ?');
const bury = db.prepare('UPDATE devices SET dead_at = ? WHERE id = ?');
const more = db.prepare('SELECT id, token FROM devices WHERE dead_at = 0 AND id > ? ORDER BY id LIMIT ?');
const addNote = db.prepare('INSERT INTO notes (title) VALUES (?)');

const enqueue = db.transaction((list) => list.forEach((d) => queue.run(d.id, Date.now())));
const write = db.transaction((list, failures) => {
  for (const d of list) {
    const failure = failures.get(d.token);
    settle.run(!failure ? 'accepted' : failure.status === 410 ? 'dead' : 'failed', failure?.response?.reason ?? '', Date.now(), d.id);
    if (failure?.status === 410) {
      bury.run(Date.now(), d.id);
    }
  }
});

const provider = new apn.Provider({
  token: { key: env.KEY, keyId: env.KEY_ID, teamId: env.TEAM_ID }, address: env.HOST, port: Number(env.PORT), ca: [fs.readFileSync(env.CA)], production: true,
});
const notification = Object.assign(new apn.Notification(), {
  topic: env.TOPIC, pushType: 'alert', alert: { title: 'Hello', body: 'This is a notification.' }, collapseId: '1',
});

const send = async (list) => {
  const { failed } = await provider.send(notification, list.map((d) => d.token));
  write(list, new Map(failed.map((f) => [f.device, f])));
};

const main = async () => {
  global.gc?.();
  const idle = process.memoryUsage.rss();
  let most = idle;
  const cpu = process.cpuUsage();
  const begun = performance.now();

  // A write waits for its turn like a request does: from when it is due.
  const took = [];
  let due = performance.now() + Number(env.WRITE_EVERY);
  const tick = () => {
    addNote.run('beside the pushes');
    const now = performance.now();
    took.push(now - due);
    most = Math.max(most, process.memoryUsage.rss());
    due = now + Number(env.WRITE_EVERY);
    timer = setTimeout(tick, Number(env.WRITE_EVERY));
  };
  let timer = setTimeout(tick, Number(env.WRITE_EVERY));

  const slices = [];
  for (let last = '', list; (list = more.all(last, page)).length > 0; last = list.at(-1).id) {
    enqueue(list);
    for (let at = 0; at < list.length; at += slice) {
      slices.push(list.slice(at, at + slice));
    }
    await new Promise(setImmediate);
  }
  await Promise.all(Array.from({ length: parallel }, async () => {
    for (let list; (list = slices.shift()); ) {
      await send(list);
    }
  }));

  const seconds = (performance.now() - begun) / 1000;
  const used = process.cpuUsage(cpu);
  clearTimeout(timer);
  await provider.shutdown();
  const count = (state) => db.prepare('SELECT count(*) AS n FROM deliveries WHERE state = ?').get(state).n;
  took.sort((a, b) => a - b);
  console.log(JSON.stringify({
    accepted: count('accepted'), dead: count('dead'), seconds, cpuSeconds: (used.user + used.system) / 1e6,
    writerMs: took[Math.floor(took.length * 0.99)] ?? 0, growthMiB: (most - idle) / 2 ** 20,
  }));
  db.close();
};

main().then(() => process.exit(0), (err) => {
  console.error(err);
  process.exit(1);
});
