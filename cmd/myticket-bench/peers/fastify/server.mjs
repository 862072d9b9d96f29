// The peer in Node.js: Fastify and pg, one INSERT a request, two workers. It stops on SIGTERM.
import cluster from 'node:cluster'
import process from 'node:process'
import Fastify from 'fastify'
import pg from 'pg'

const [, , host, port, connections] = process.argv
const workers = 2

if (cluster.isPrimary) {
  for (let i = 0; i < workers; i++) cluster.fork()
  let stopping = false
  process.on('SIGTERM', () => {
    stopping = true
    for (const worker of Object.values(cluster.workers)) worker.process.kill('SIGTERM')
  })
  cluster.on('exit', () => {
    if (!stopping) process.exit(1)
    if (Object.keys(cluster.workers).length === 0) process.exit(0)
  })
} else {
  const max = Number(connections) / workers
  const pool = new pg.Pool({ connectionString: process.env.BENCH_DATABASE_URL, max, idleTimeoutMillis: 0 })
  // All connections are there before the first ticket.
  const clients = await Promise.all(Array.from({ length: max }, () => pool.connect()))
  for (const client of clients) client.release()
  const app = Fastify({ bodyLimit: 1 << 20, keepAliveTimeout: 75_000 })
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('*', { parseAs: 'buffer' }, (request, body, done) => done(null, body))
  app.get('/ping', async () => 'Pong')
  app.post('/ticket', async (request) => {
    const { rows } = await pool.query({
      name: 'insert', // prepared once a connection
      text: 'INSERT INTO bodies_fastify (body) VALUES ($1) RETURNING id',
      values: [request.body]
    })
    return { id: rows[0].id, status: 'STORED' }
  })
  process.on('SIGTERM', async () => {
    await app.close()
    await pool.end()
    process.exit(0)
  })
  await app.listen({ host, port: Number(port) })
}
