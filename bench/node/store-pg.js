// node-postgres with a pool and named prepared statements.
'use strict';

const { Pool } = require('pg');

const pool = new Pool({ max: 10 });

const query = (on) => (name, text, values) => on.query({ name, text, values });

module.exports = {
  all: async (name, sql, args) => (await query(pool)(name, sql, args)).rows,
  run: query(pool),
  transaction: async (fn) => {
    const client = await pool.connect();
    try {
      await client.query('BEGIN');
      const result = await fn({ run: query(client) });
      await client.query('COMMIT');
      return result;
    } catch (err) {
      await client.query('ROLLBACK');
      throw err;
    } finally {
      client.release();
    }
  },
};
