// What others do with the tokens: a resource server with jose, a service with openid-client, and the SDK itself.
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { createRemoteJWKSet, decodeProtectedHeader, jwtVerify } from "jose";
import * as oidc from "openid-client";
import PocketBase from "pocketbase";
import { client, collection, command, email, failure, password, superuser, text, unique, url } from "../support.mjs";

// signIn makes a user and returns a client that holds the stock token, and the session's own tokens.
async function signIn() {
  const pb = client();
  const address = email("tokens");
  await pb.collection("users").create({ email: address, password, passwordConfirm: password });
  const auth = await pb.collection("users").authWithPassword(address, password);
  return { pb, address, session: auth.meta.session, record: auth.record };
}

// status asks who the bearer is, and how that went.
async function status(token) {
  const answer = await fetch(`${url}/api/v1/auth/sessions`, { headers: { Authorization: `Bearer ${token}` } });
  return answer.status;
}

async function until(what, condition, timeout = 10_000) {
  for (const end = Date.now() + timeout; !(await condition()); await sleep(20)) {
    assert.ok(Date.now() < end, `not in time: ${what}`);
  }
}

describe("access tokens and jose", () => {
  const expected = { issuer: url, audience: url, typ: "at+jwt", algorithms: ["ES256"] };

  it("verify by the published keys, over a rotation", async () => {
    const keys = createRemoteJWKSet(new URL("/.well-known/jwks.json", url), { cooldownDuration: 0 });
    const old = await signIn();
    const verified = await jwtVerify(old.session.accessToken, keys, expected);
    assert.equal(verified.payload.sub, old.record.id);
    assert.equal(verified.payload.sid, old.session.sessionId);
    assert.deepEqual(verified.payload.amr, ["password"]);

    assert.match(await command("auth", "keys", "rotate", "--now"), /signs now/);
    const fresh = await signIn();
    const kid = (token) => decodeProtectedHeader(token).kid;
    assert.notEqual(kid(fresh.session.accessToken), kid(old.session.accessToken), "the running server signs with the new key");
    for (const { session, record } of [old, fresh]) {
      assert.equal((await jwtVerify(session.accessToken, keys, expected)).payload.sub, record.id);
      assert.equal(await status(session.accessToken), 200);
    }

    // A verifier that starts now finds both, and one that has the set of before the rotation finds the new key in it.
    const later = createRemoteJWKSet(new URL("/.well-known/jwks.json", url));
    await jwtVerify(old.session.accessToken, later, expected);
    await jwtVerify(fresh.session.accessToken, later, expected);

    await command("auth", "keys", "rotate", "--now", "--drop");
    assert.equal(await status(fresh.session.accessToken), 401, "a dropped key verifies nothing");
    const again = await fetch(`${url}/api/v1/auth/refresh`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ refreshToken: fresh.session.refreshToken }),
    });
    assert.equal(again.status, 200, "and the session goes on");
  });

  it("are refused when anything about them is changed", async () => {
    const keys = createRemoteJWKSet(new URL("/.well-known/jwks.json", url));
    const { session, pb } = await signIn();
    const [head, body, signature] = session.accessToken.split(".");
    const claims = JSON.parse(Buffer.from(body, "base64url"));
    const forged = Buffer.from(JSON.stringify({ ...claims, sub: "somebody-else00" })).toString("base64url");
    await assert.rejects(jwtVerify(`${head}.${forged}.${signature}`, keys, expected));
    await assert.rejects(jwtVerify(session.accessToken, keys, { ...expected, audience: "https://other.example" }));
    await assert.rejects(jwtVerify(pb.authStore.token, keys, expected), "a stock token is no access token");
    assert.equal(await status(`${head}.${forged}.${signature}`), 401);
  });
});

describe("openid-client", () => {
  const insecure = { execute: [oidc.allowInsecureRequests] }; // plain HTTP, which is for loopback
  let app, server;
  before(async () => {
    app = await oidc.discovery(new URL(url), "app", undefined, oidc.None(), insecure);
    const { key } = JSON.parse(await command("apikeys", "create", unique("gateway"), "--scope", "introspect", "--json"));
    server = await oidc.discovery(new URL(url), "gateway", undefined, oidc.ClientSecretBasic(key), insecure);
  });

  it("discovers the server by both documents", async () => {
    const metadata = app.serverMetadata();
    assert.equal(metadata.issuer, url);
    assert.equal(metadata.token_endpoint, `${url}/api/v1/auth/token`);
    const oauth = await oidc.discovery(new URL(url), "app", undefined, oidc.None(), { ...insecure, algorithm: "oauth2" });
    assert.deepEqual(oauth.serverMetadata().jwks_uri, metadata.jwks_uri);
  });

  it("refreshes, and may repeat the refresh whose answer it lost", async () => {
    const { session } = await signIn();
    const first = await oidc.refreshTokenGrant(app, session.refreshToken);
    assert.equal(first.token_type, "bearer");
    assert.equal(first.expires_in, 900);
    assert.notEqual(first.refresh_token, session.refreshToken);
    const repeated = await oidc.refreshTokenGrant(app, session.refreshToken);
    assert.equal(repeated.refresh_token, first.refresh_token);
    assert.equal(await status(repeated.access_token), 200);
    await assert.rejects(oidc.refreshTokenGrant(app, "rt1.nobody.1.AAAA"), (err) => err.error === "invalid_grant");
  });

  it("introspects with a key of the server", async () => {
    const { session, record } = await signIn();
    const access = await oidc.tokenIntrospection(server, session.accessToken);
    assert.equal(access.active, true);
    assert.equal(access.sub, record.id);
    assert.equal(access.sid, session.sessionId);
    assert.equal((await oidc.tokenIntrospection(server, session.refreshToken)).active, true);
    assert.deepEqual(await oidc.tokenIntrospection(server, "nothing"), { active: false });
    await assert.rejects(oidc.tokenIntrospection(app, session.accessToken), "without a key");
  });

  it("revokes, and nothing of the session is active any more", async () => {
    const { session, pb } = await signIn();
    await oidc.tokenRevocation(app, session.refreshToken);
    await oidc.tokenRevocation(app, session.refreshToken); // again, as a client whose answer was lost
    for (const token of [session.accessToken, session.refreshToken, pb.authStore.token]) {
      assert.deepEqual(await oidc.tokenIntrospection(server, token), { active: false });
    }
    assert.equal(await status(session.accessToken), 401);
    await assert.rejects(oidc.refreshTokenGrant(app, session.refreshToken), (err) => err.error === "invalid_grant");
  });
});

describe("the SDK and sessions", () => {
  it("is signed out by the user's other device, and its realtime connection ends", async () => {
    const news = await collection("news", { fields: [text("title")], rules: { listRule: "@request.auth.id != ''", viewRule: "@request.auth.id != ''" } });
    const lost = await signIn();
    const other = client();
    await other.collection("users").authWithPassword(lost.address, password);

    await lost.pb.collection("users").authRefresh(); // stays in its session
    const dropped = [];
    const events = [];
    lost.pb.realtime.onDisconnect = (topics) => dropped.push(topics);
    await lost.pb.collection(news.name).subscribe("*", (e) => events.push(e.record.title));
    const admin = await superuser();
    await admin.collection(news.name).create({ title: "before" });
    await until("the event", () => events.length > 0);

    const list = await other.send("/api/v1/auth/sessions", {});
    assert.equal(list.data.length, 2);
    assert.equal(list.data.find((s) => s.current).id === lost.session.sessionId, false);
    await other.send(`/api/v1/auth/sessions/${lost.session.sessionId}`, { method: "DELETE" });

    const err = await failure(401, () => lost.pb.collection("users").getOne(lost.record.id));
    assert.ok(["sessions.token_revoked", undefined].includes(err.response.code), JSON.stringify(err.response));
    await failure(401, () => lost.pb.collection("users").authRefresh());
    await until("the end of the connection", () => dropped.length > 0);
    await admin.collection(news.name).create({ title: "after" });
    await sleep(300);
    assert.deepEqual(events, ["before"]);
    assert.equal((await other.collection("users").getOne(lost.record.id)).id, lost.record.id);
    await lost.pb.realtime.unsubscribe();
  });

  it("works below /api/v1 with either kind of token", async () => {
    const { pb, session, record } = await signIn();
    for (const token of [pb.authStore.token, session.accessToken]) {
      const own = new PocketBase(url).autoCancellation(false);
      own.beforeSend = (address, options) => ({ url: address.replace("/api/collections/", "/api/v1/collections/"), options });
      own.authStore.save(token, record);
      assert.equal(own.authStore.isValid, true);
      assert.equal((await own.collection("users").getOne(record.id)).email, record.email);
      assert.equal((await own.collection("users").update(record.id, { name: "Ada" })).name, "Ada");
      assert.equal((await own.collection("users").authRefresh()).record.id, record.id);
      assert.equal(await status(own.authStore.token), 200);
    }
  });
});

describe("anonymous users", () => {
  before(async () => {
    const admin = await superuser();
    const made = await admin.collections.create({ name: "visitors", type: "auth", viewRule: "id = @request.auth.id" });
    const fields = made.fields.map((f) => (f.name === "email" ? { ...f, required: false } : f));
    await admin.collections.update(made.id, { fields });
  });
  after(async () => (await superuser()).collections.delete("visitors"));

  it("become users with an address and keep their id", async () => {
    const pb = client();
    const { data } = await pb.send("/api/v1/auth/anonymous", { method: "POST" });
    assert.equal(data.isNew, true);
    pb.authStore.save(data.session.accessToken, data.record);
    assert.equal((await pb.collection("visitors").getOne(data.record.id)).id, data.record.id);
    const address = email("visitor");
    const upgraded = await pb.send("/api/v1/auth/upgrade", { method: "POST", body: { email: address, password, passwordConfirm: password } });
    assert.equal(upgraded.data.record.id, data.record.id);
    assert.equal(upgraded.data.session.sessionId, data.session.sessionId);
    assert.equal((await pb.collection("visitors").getOne(data.record.id)).email, address);
    await client().collection("visitors").authWithPassword(address, password);
  });

  it("are told what to do where they are off", async () => {
    const err = await failure(403, () => client().send("/api/v1/auth/anonymous", { method: "POST", body: { collection: "users" } }));
    assert.equal(err.response.code, "anonymous.disabled");
  });
});
