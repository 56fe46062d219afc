<?php
// Copyright (c) 2026, the clearproxy.haproxy contributors
// GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// The classic test page of a load balancer: which server answered, and whom it saw.
header('Content-Type: text/plain');
header('Cache-Control: no-store');
if (isset($_GET['ms'])) {
    usleep(1000 * min(5000, (int) $_GET['ms']));
}
echo 'time: ', date('c'), "\n";
echo 'peer: ', $_SERVER['REMOTE_ADDR'], "\n";
echo 'server_address: ', $_SERVER['SERVER_ADDR'], "\n";
echo 'server_name: ', gethostname(), "\n";
