import assert from "node:assert/strict";
import { before, describe, it } from "node:test";
import { getTokenPayload, isTokenExpired } from "pocketbase";
import { client, collection, email, failure, password, superuser, text, user, versioned } from "../support.mjs";

describe("auth", () => {
  it("signs up, signs in and keeps the session in the auth store", async () => {
    const pb = client();
    const address = email("ada");
    const record = await pb.collection("users").create({ email: address, password, passwordConfirm: password, name: "Ada" });
    assert.equal(record.collectionName, "users");
    assert.equal(record.name, "Ada");
    assert.equal(record.password, undefined);
    assert.equal(record.tokenKey, undefined);
    assert.equal(pb.authStore.isValid, false);

    const seen = [];
    const stop = pb.authStore.onChange((token, model) => seen.push([token, model?.id]));
    const auth = await pb.collection("users").authWithPassword(address, password);
    assert.equal(auth.record.id, record.id);
    assert.equal(auth.record.email, address);
    assert.equal(pb.authStore.token, auth.token);
    assert.equal(pb.authStore.record.id, record.id);
    assert.equal(pb.authStore.isValid, true);
    assert.equal(pb.authStore.isSuperuser, false);
    assert.deepEqual(seen, [[auth.token, record.id]]);

    const payload = getTokenPayload(auth.token);
    assert.equal(payload.id, record.id);
    assert.equal(payload.type, "auth");
    assert.equal(isTokenExpired(auth.token), false);

    pb.authStore.clear();
    stop();
    assert.equal(pb.authStore.isValid, false);
    assert.deepEqual(seen.at(-1), ["", undefined]);
  });

  it("carries a session in a cookie and back", async () => {
    const pb = await user();
    const cookie = pb.authStore.exportToCookie({ httpOnly: false });
    const other = client();
    other.authStore.loadFromCookie(cookie);
    assert.equal(other.authStore.token, pb.authStore.token);
    const me = await other.collection("users").getOne(pb.authStore.record.id);
    assert.equal(me.email, pb.authStore.record.email);
  });

  it("refreshes the token", async () => {
    const pb = await user();
    const old = pb.authStore.token;
    const auth = await pb.collection("users").authRefresh();
    assert.equal(auth.record.id, pb.authStore.record.id);
    assert.equal(pb.authStore.token, auth.token);
    assert.ok(getTokenPayload(auth.token).exp >= getTokenPayload(old).exp);
    assert.equal(pb.authStore.isValid, true);
  });

  it("selects fields of the auth answer", async () => {
    const pb = await user();
    const auth = await pb.collection("users").authRefresh({ fields: "token,record.id" });
    assert.deepEqual(Object.keys(auth.record), ["id"]);
  });

  it("refuses a wrong password and an unknown account alike", async () => {
    const pb = await user();
    const guest = client();
    const wrong = await failure(400, () => guest.collection("users").authWithPassword(pb.authStore.record.email, "not the password"));
    const unknown = await failure(400, () => guest.collection("users").authWithPassword(email("nobody"), password));
    assert.equal(wrong.response.message, unknown.response.message);
    assert.equal(wrong.response.status, 400);
    assert.equal(guest.authStore.isValid, false);
  });

  it("refuses a refresh without a session", async () => {
    await failure(401, () => client().collection("users").authRefresh());
  });

  it("says what is wrong with a sign-up", async () => {
    const signUp = (data) => client().collection("users").create(data);
    const mismatch = await failure(400, () => signUp({ email: email("eve"), password, passwordConfirm: "something else" }));
    assert.equal(mismatch.response.data.passwordConfirm.code, "validation_values_mismatch");
    const bad = await failure(400, () => signUp({ email: "no mail", password: "short", passwordConfirm: "short" }));
    for (const field of ["email", "password"]) {
      assert.ok(bad.response.data[field]?.code, `${field}: ${JSON.stringify(bad.response)}`);
    }
  });

  it("answers a sign-up with a taken address like any other, and leaves the account alone", async () => {
    const pb = await user();
    const { id, email: address } = pb.authStore.record;
    const other = { password: "another secret", passwordConfirm: "another secret" };
    const taken = await client().collection("users").create({ email: address, ...other });
    const fresh = await client().collection("users").create({ email: email("eve"), ...other });
    assert.notEqual(taken.id, id);
    assert.deepEqual(Object.keys(taken).sort(), Object.keys(fresh).sort());
    await failure(400, () => client().collection("users").authWithPassword(address, "another secret"));
    await client().collection("users").authWithPassword(address, password);
  });

  it("ends all sessions when the password changes", async () => {
    const pb = await user();
    const other = client();
    other.authStore.save(pb.authStore.token, pb.authStore.record);
    const { id, email: address } = pb.authStore.record;

    await failure(400, () =>
      pb.collection("users").update(id, { oldPassword: "wrong one", password: "another secret", passwordConfirm: "another secret" }),
    );
    await pb.collection("users").update(id, { oldPassword: password, password: "another secret", passwordConfirm: "another secret" });

    await failure(401, () => other.collection("users").authRefresh());
    if (versioned) {
      // A credential that fails is never a silent guest here.
      const err = await failure(401, () => other.collection("users").getList(1, 1));
      assert.ok(err.response.code, JSON.stringify(err.response));
    } else {
      const list = await other.collection("users").getList(1, 1);
      assert.equal(list.totalItems, 0);
    }
    await failure(400, () => client().collection("users").authWithPassword(address, password));
    await client().collection("users").authWithPassword(address, "another secret");
  });

  it("forgets the session when the account deletes itself", async () => {
    const pb = await user();
    const token = pb.authStore.token;
    const record = pb.authStore.record;
    assert.equal(await pb.collection("users").delete(record.id), true);
    assert.equal(pb.authStore.isValid, false);
    const stale = client();
    stale.authStore.save(token, record);
    await failure(401, () => stale.collection("users").authRefresh());
  });

  it("lists the auth methods", async () => {
    const methods = await client().collection("users").listAuthMethods();
    assert.equal(methods.password.enabled, true);
    assert.ok(methods.password.identityFields.includes("email"));
    assert.equal(typeof methods.oauth2.enabled, "boolean");
    assert.equal(typeof methods.otp.enabled, "boolean");
    assert.equal(typeof methods.mfa.enabled, "boolean");
  });

  it("answers requests by mail the same for unknown addresses", async () => {
    const pb = await user();
    const guest = client();
    for (const address of [pb.authStore.record.email, email("nobody")]) {
      assert.equal(await guest.collection("users").requestPasswordReset(address), true);
      assert.equal(await guest.collection("users").requestVerification(address), true);
    }
    await failure(400, () => guest.collection("users").confirmVerification("not.a.token"));
    await failure(400, () => guest.collection("users").confirmPasswordReset("not.a.token", password, password));
  });
});

describe("one-time passwords", () => {
  let members;
  before(async () => {
    members = await collection("members", { type: "auth", fields: [text("name")], otp: { enabled: true, duration: 180, length: 8 } });
  });

  it("hands out an id for known and unknown addresses", async () => {
    const pb = await user(members.name);
    const guest = client();
    for (const address of [pb.authStore.record.email, email("nobody")]) {
      const otp = await guest.collection(members.name).requestOTP(address);
      assert.match(otp.otpId, /^[a-z0-9]{15}$/);
      await failure(400, () => guest.collection(members.name).authWithOTP(otp.otpId, "00000000"));
    }
    assert.equal(guest.authStore.isValid, false);
  });

  it("refuses them where they are off", async () => {
    const err = await failure(403, () => client().collection("users").requestOTP(email("nobody")));
    assert.equal(err.response.status, 403);
  });
});

describe("superusers", () => {
  it("sign in, and impersonate a user for a limited time", async () => {
    const pb = await superuser();
    assert.equal(pb.authStore.isSuperuser, true);
    const member = await user();
    const as = await pb.collection("users").impersonate(member.authStore.record.id, 60);
    if (versioned) {
      as.beforeSend = pb.beforeSend;
    }
    assert.equal(as.authStore.record.id, member.authStore.record.id);
    const lifetime = getTokenPayload(as.authStore.token).exp - Date.now() / 1000;
    assert.ok(lifetime > 30 && lifetime <= 61, `lifetime ${lifetime}`);
    const me = await as.collection("users").getOne(member.authStore.record.id);
    assert.equal(me.email, member.authStore.record.email);
    await failure(403, () => as.collections.getList());
  });

  it("are the only ones who impersonate", async () => {
    const [a, b] = [await user(), await user()];
    await failure(403, () => a.collection("users").impersonate(b.authStore.record.id, 60));
    await failure(401, () => client().collection("users").impersonate(b.authStore.record.id, 60));
  });
});
