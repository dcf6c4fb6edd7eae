// The stand-ins of satchel dev stubs are accepted by the clients that others use for the real services, and what the
// program sends is understood by a library that others wrote. E2E_STUBS is what the command printed, as JSON.
import assert from "node:assert/strict";
import { createECDH, randomBytes } from "node:crypto";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import apn from "@parse/node-apn";
import { Expo } from "expo-server-sdk";
import ece from "http_ece";
import webpush from "web-push";
import { command } from "../support.mjs";

const stubs = JSON.parse(process.env.E2E_STUBS);
const device = "00112233445566778899aabbccddeeff".repeat(2);

const arrivals = async (provider) => (await fetch(`${stubs.page}/arrivals?provider=${encodeURIComponent(provider)}`)).json();
const newest = async (provider) => (await arrivals(provider)).at(-1);
const subscribe = async (wish = {}) => (await fetch(`${stubs.webpush}/subscribe`, { method: "POST", body: JSON.stringify(wish) })).json();

describe("APNs by @parse/node-apn", () => {
  const connect = (address) => new apn.Provider({
    token: { key: stubs.key, keyId: stubs.keyId, teamId: stubs.teamId },
    address: new URL(address).hostname, port: Number(new URL(address).port), ca: [readFileSync(stubs.ca)], production: true, connectionRetryLimit: 0,
  });
  const note = (fields) => Object.assign(new apn.Notification(), { topic: stubs.topic, pushType: "alert", ...fields });

  it("is accepted in production and in the sandbox", async () => {
    for (const [address, provider] of [[stubs.apns, "apns"], [stubs.sandbox, "apns sandbox"]]) {
      const client = connect(address);
      const { sent, failed } = await client.send(note({ alert: { title: "Hello", body: provider }, collapseId: "k", badge: 1, payload: { route: "/" } }), device);
      await client.shutdown();
      assert.deepEqual([sent.length, failed.length], [1, 0], JSON.stringify(failed));
      const { title, text, headers } = await newest(provider);
      assert.deepEqual([title, text, headers["apns-topic"], headers["apns-collapse-id"]], ["Hello", provider, stubs.topic, "k"]);
    }
  });

  it("sees why a push was refused", async () => {
    const client = connect(stubs.apns);
    for (const [token, fields, status, reason] of [
      [`dead00${device}`, {}, 410, "Unregistered"], [`bad000${device}`, {}, 400, "BadDeviceToken"], [device, { topic: "com.example.other" }, 400, "DeviceTokenNotForTopic"],
      [device, { alert: "x".repeat(4200) }, 413, "PayloadTooLarge"], [device, { pushType: "background", alert: "x" }, 400, "BadPriority"],
    ]) {
      const { failed } = await client.send(note({ alert: "Hello", ...fields }), token);
      assert.deepEqual([failed[0]?.status, failed[0]?.response?.reason], [status, reason]);
    }
    await client.shutdown();
  });

  it("is refused with another key id", async () => {
    const client = new apn.Provider({
      token: { key: stubs.key, keyId: "OTHERKEYID", teamId: stubs.teamId }, address: "127.0.0.1", port: Number(new URL(stubs.apns).port),
      ca: [readFileSync(stubs.ca)], production: true, connectionRetryLimit: 0,
    });
    const { failed } = await client.send(note({ alert: "Hello" }), device);
    await client.shutdown();
    assert.equal(failed[0]?.response?.reason, "InvalidProviderToken");
  });
});

describe("Web Push by web-push", () => {
  const keys = webpush.generateVAPIDKeys();
  const options = { TTL: 60, urgency: "high", topic: "news", vapidDetails: { subject: "mailto:admin@example.com", ...keys } };

  it("is accepted and decrypted", async () => {
    const answer = await webpush.sendNotification(await subscribe({ applicationServerKey: keys.publicKey }), JSON.stringify({ title: "Grüße", body: "an alle" }), options);
    assert.equal(answer.statusCode, 201);
    const { title, text, headers } = await newest("webpush");
    assert.deepEqual([title, text, headers.TTL, headers.Urgency, headers.Topic], ["Grüße", "an alle", "60", "high", "news"]);
  });

  it("sees why a push was refused", async () => {
    const other = webpush.generateVAPIDKeys();
    for (const [wish, changed, status] of [
      [{ prefix: "dead00" }, {}, 410], [{ prefix: "bad000" }, {}, 404], [{ prefix: "429429" }, {}, 429], [{ prefix: "503503" }, {}, 503],
      [{ applicationServerKey: other.publicKey }, {}, 403], [{}, { vapidDetails: { ...options.vapidDetails, subject: "https://localhost" } }, 403],
    ]) {
      const subscription = await subscribe(wish);
      await assert.rejects(webpush.sendNotification(subscription, "{}", { ...options, ...changed }), { statusCode: status });
    }
  });
});

describe("Expo by expo-server-sdk", () => {
  const expo = new Expo();

  it("gives tickets and receipts", async () => {
    const tokens = ["ExponentPushToken[abc]", "ExponentPushToken[dead00]"];
    assert.ok(tokens.every((token) => Expo.isExpoPushToken(token)));
    // Over a kilobyte, so that the client compresses the request.
    const messages = tokens.map((to) => ({ to, title: "Hello", body: "x".repeat(2000), data: { route: "/" }, sound: "default" }));
    const tickets = (await Promise.all(expo.chunkPushNotifications(messages).map((chunk) => expo.sendPushNotificationsAsync(chunk)))).flat();
    assert.deepEqual(tickets.map((t) => t.details?.error ?? t.status), ["ok", "DeviceNotRegistered"]);
    const receipts = await expo.getPushNotificationReceiptsAsync([tickets[0].id]);
    assert.equal(receipts[tickets[0].id].status, "ok");
  });

  it("sees why a request was refused", async () => {
    await assert.rejects(expo.sendPushNotificationsAsync(Array.from({ length: 101 }, () => ({ to: "ExponentPushToken[abc]" }))), { code: "PUSH_TOO_MANY_NOTIFICATIONS" });
  });
});

describe("what the program sends", () => {
  it("is Web Push that http_ece decrypts", async () => {
    const receiver = createECDH("prime256v1");
    receiver.generateKeys();
    const authSecret = randomBytes(16);
    const subscription = await subscribe({ p256dh: receiver.getPublicKey("base64url"), auth: authSecret.toString("base64url") });
    const file = join(mkdtempSync(join(tmpdir(), "satchel-push-")), "subscription.json");
    for (const body of ["Grüße 👋 <b>", "x".repeat(3900)]) {
      writeFileSync(file, JSON.stringify(subscription));
      await command("push", "test", "webpush", "--token-file", file, "--title", "Hello", "--body", body, "--data", "route=/posts/1");
      const { raw, headers } = await newest("webpush");
      const plain = ece.decrypt(Buffer.from(raw, "base64"), { version: "aes128gcm", privateKey: receiver, authSecret });
      assert.deepEqual(JSON.parse(plain), { title: "Hello", body, data: { route: "/posts/1" } });
      assert.equal(headers["Content-Encoding"], "aes128gcm");
    }
  });

  it("arrives at each provider", async () => {
    for (const [provider, token, ...flags] of [
      ["apns", device], ["apns sandbox", device, "--sandbox"], ["fcm", "f".repeat(160)], ["expo", "ExponentPushToken[abc]"],
    ]) {
      await command("push", "test", provider.split(" ")[0], token, "--title", "From the program", ...flags);
      assert.equal((await newest(provider)).title, "From the program");
    }
    const { results } = JSON.parse(await command("push", "test", "--json"));
    assert.deepEqual(results.map((r) => [r.platform, r.outcome]), [["apns", "accepted"], ["expo", "accepted"], ["fcm", "accepted"], ["webpush", "accepted"]]);
  });
});
