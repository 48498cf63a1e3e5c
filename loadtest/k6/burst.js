// A burst after silence: how many calls wait for cold starts, and for how long.
//
//   k6 run -e URL=http://127.0.0.1:8080/t/demo/hello loadtest/k6/burst.js

import http from 'k6/http';
import { check } from 'k6';

const url = __ENV.URL;
if (!url) {
  throw new Error('name the function: -e URL=http://127.0.0.1:8080/t/APP/SOURCE');
}

export const options = {
  scenarios: {
    burst: {
      executor: 'ramping-vus',
      startVUs: 1,
      stages: [
        { duration: '2s', target: 1 },
        { duration: '1s', target: 64 },
        { duration: '5s', target: 64 },
        { duration: '1s', target: 0 },
      ],
    },
  },
  thresholds: {
    // 503 with Retry-After is an honest answer to a burst; anything else that is not 200 is not.
    checks: ['rate>0.999'],
  },
};

export default function () {
  const answer = http.post(url, 'Ada', { headers: { 'Content-Type': 'text/plain' } });
  check(answer, {
    'answered or refused': (got) => got.status === 200 || (got.status === 503 && got.headers['Retry-After'] !== undefined),
  });
}
