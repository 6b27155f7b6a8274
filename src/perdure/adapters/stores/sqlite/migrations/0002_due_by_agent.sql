-- A node asks for the sessions of its own agents that are due. By time alone it would pass over
-- every parked session of other agents, at every scan.
DROP INDEX sessions_due;
CREATE INDEX sessions_due ON sessions (agent, wake_at)
WHERE owner IS NULL AND quarantine IS NULL AND wake_at IS NOT NULL;
