// aedes on a port of this machine: node broker.cjs PORT [REDIS_PORT]. With Redis, several of them are one cluster.
const { createRequire } = require('node:module')
const net = require('node:net')
const path = require('node:path')

// The modules may lie in another folder than this file.
const installed = process.env.HAR_EDGE_AEDES || __dirname
const load = createRequire(path.join(path.resolve(installed), 'package.json'))
const { Aedes } = load('aedes')

async function main () {
  const [port, redis] = process.argv.slice(2).map(Number)
  const options = { concurrency: 1000, queueLimit: 1000000 }
  if (redis) {
    const connection = { host: '127.0.0.1', port: redis }
    options.mq = load('mqemitter-redis')({ ...connection, concurrency: 1000 })
    options.persistence = load('aedes-persistence-redis')(connection)
  }
  const broker = await Aedes.createBroker(options)
  net.createServer(broker.handle).listen(port, '127.0.0.1')
}

// The launcher holds the other end of this pipe: with it gone, nobody needs this broker any more.
process.stdin.on('end', () => process.exit(0)).resume()
main().catch(error => { console.error(error); process.exit(1) })
